"""The policy language as data: what a policy file may say, key by key.

These Structs are the only list of keys: reading, checking, inheritance, ``policy explain`` and the JSON Schema for
editors all follow them. Their default values are the built-in defaults. A file's mappings are checked against them as
they stand, merged key by key, and only then become one ``Settings`` per route.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, field

from specproxy.vocabulary import MAX_TREE_NODES

SCHEMA_FILE = "policy.schema.json"

Presence = Literal["present", "absent"]
Off = Literal["off"] | Annotated[bool, Meta(extra_json_schema={"const": False})]
Switch = Literal["on", "off"] | bool
Fraction = Annotated[float, Meta(ge=0, le=1)]
Probability = Annotated[float, Meta(gt=0, lt=1)]
Nodes = Annotated[int, Meta(ge=0, le=MAX_TREE_NODES)]
Limit = Annotated[int, Meta(ge=0)] | None


class Closed(Struct, forbid_unknown_fields=True, kw_only=True):
    """A mapping in which every key must be known."""


class KRange(Closed):
    """Drafted tokens per row and step. ``min`` binds only while a draft is proposed; max auto: the drafter's own."""

    min: Nodes = 0
    max: Nodes | Literal["auto"] = "auto"


class Tree(Closed):
    """Children per node at most, and drafted nodes per step at most; width 1 is a chain."""

    width: Annotated[int, Meta(ge=1, le=16)] = 1
    nodes: Annotated[int, Meta(ge=1, le=MAX_TREE_NODES)] = 16


class Speculate(Closed):
    """``drafters``: auto (the controller chooses among all), a name, or a list (the first that has a guess wins)."""

    drafters: str | Annotated[list[str], Meta(min_length=1)] = "auto"
    k: Literal["auto"] | Nodes | KRange | Off = "auto"
    tree: Tree = field(default_factory=Tree)


class Limits(Closed):
    """A request beyond them gets a 400, never a clamped answer; null: no limit. ``timeout_s`` in seconds."""

    max_tokens: Annotated[int, Meta(ge=1)] | None = 4096
    prompt_tokens: Limit = None
    tool_calls: Limit = 32
    timeout_s: Annotated[float, Meta(gt=0)] | None = 600.0


class Audit(Closed):
    """Share of answers to recompute; share of device time that this may take."""

    fraction: Fraction = 1.0
    budget: Fraction = 0.05


class Shadow(Closed):
    """Share of requests to replay; of device time beside users, 0: none; the header by which a client stays out."""

    fraction: Fraction = 0.1
    budget: Fraction = 0.05
    opt_out_header: str = "x-specproxy-no-shadow"


class Margins(Closed):
    """How much worse a candidate may be than what serves now. As a share: 95th percentiles of the time to the first
    token and between tokens, device time of a conversation (``cost``). In absolute terms, how much lower a rate: valid
    structured outputs, valid tool calls, conversations whose replay has identical text (``stability``), audited answers
    without an explained near-tie (``ties``; where answers are bitwise it need not be proven, only not be broken)."""

    ttft_p95: Annotated[float, Meta(ge=0)] = 0.05
    itl_p95: Annotated[float, Meta(ge=0)] = 0.05
    cost: Annotated[float, Meta(ge=0)] = 0.05
    structured: Fraction = 0.02
    tools: Fraction = 0.02
    stability: Fraction = 0.02
    ties: Fraction = 0.02


class Mismatch(Closed):
    """The sequential test of mismatch rates in numeric mode: rates, and the error probabilities allowed."""

    p0: Probability = 0.001
    p1: Probability = 0.01
    alpha: Probability = 0.05
    beta: Probability = 0.05


class Gate(Closed):
    """How a changed route becomes active. off: at once; auto: by evidence; manual: by evidence, then a person."""

    mode: Literal["auto", "manual"] | Off = "off"
    goal: Literal["faster", "no_worse"] = "faster"
    min_gain: Annotated[float, Meta(ge=0)] = 0.03
    margins: Margins = field(default_factory=Margins)
    mismatch: Mismatch = field(default_factory=Mismatch)
    canary: Annotated[list[Annotated[float, Meta(gt=0, le=1)]], Meta(min_length=1)] = field(
        default_factory=lambda: [0.01, 0.05, 0.25, 0.5, 1.0]
    )
    min_samples: Annotated[int, Meta(ge=1)] = 50
    max_age_h: Annotated[float, Meta(gt=0)] = 168


class CaptureTo(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A directory of the route's own for what it keeps, and how many MiB at most."""

    dir: Annotated[str, Meta(min_length=1)]
    max_mb: Annotated[int, Meta(ge=1)] = 512


class Settings(Closed):
    """Everything that a route decides. ``defaults`` has the same keys; a route inherits each that it does not give.

    ``capture``: keep prompts and answers for training, in the directory that the start configuration names, or in one
    of the route's own.
    """

    backend: str | Annotated[list[str], Meta(min_length=1)] = "engine"
    speculate: Off | Speculate = field(default_factory=Speculate)
    exactness: Literal["bitwise", "numeric"] = "bitwise"
    override: bool = False
    limits: Limits = field(default_factory=Limits)
    audit: Audit = field(default_factory=Audit)
    shadow: Shadow = field(default_factory=Shadow)
    hold_out: Fraction = 0.01
    gate: Gate = field(default_factory=Gate)
    capture: Switch | CaptureTo = False


class NumberRange(Closed):
    """Bounds that must all hold."""

    ge: float | UnsetType = UNSET
    gt: float | UnsetType = UNSET
    le: float | UnsetType = UNSET
    lt: float | UnsetType = UNSET


Text = str | Annotated[list[str], Meta(min_length=1)]
"""A value, a list of values, a /regex/, or present or absent."""

Number = float | NumberRange | Presence


class Match(Closed):
    """Conditions on a request: all that are given must hold. A field that the request does not give holds ``absent``
    and no other condition; ``n``, ``stream`` and ``response_format`` compare as 1, false and text then."""

    path: Text | UnsetType = UNSET
    model: Text | UnsetType = UNSET
    header: dict[str, Text] | UnsetType = UNSET
    api_key: Text | UnsetType = UNSET
    response_format: Text | UnsetType = UNSET
    tools: Text | UnsetType = UNSET
    tool_choice: Text | UnsetType = UNSET
    temperature: Number | UnsetType = UNSET
    top_p: Number | UnsetType = UNSET
    max_tokens: Number | UnsetType = UNSET
    n: Number | UnsetType = UNSET
    prompt_tokens: Number | UnsetType = UNSET
    turns: Number | UnsetType = UNSET
    stream: bool | Presence | UnsetType = UNSET
    logprobs: bool | Number | UnsetType = UNSET
    prediction: Text | UnsetType = UNSET
    prompt: Text | UnsetType = UNSET
    metadata: dict[str, Text] | Presence | UnsetType = UNSET
    load: Number | UnsetType = UNSET
    any: Annotated[list[Match], Meta(min_length=1)] | UnsetType = UNSET
    all: Annotated[list[Match], Meta(min_length=1)] | UnsetType = UNSET
    not_: Match | UnsetType = field(default=UNSET, name="not")


class Route(Settings, kw_only=True):
    """One route: a name, the requests that it takes, and its own settings. No match: it takes every request."""

    name: Annotated[str, Meta(min_length=1, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    match: Match | UnsetType = UNSET


class PolicyFile(Closed):
    """One file of a policy directory."""

    version: Literal[1] = 1
    defaults: Settings | UnsetType = UNSET
    routes: list[Route] = []


def json_schema() -> dict[str, Any]:
    """JSON Schema of a policy file, for editors."""
    schema = msgspec.json.schema(PolicyFile)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "specproxy policy file"}
    return head | schema
