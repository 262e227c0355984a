"""The nouns of specproxy, defined once. Plain immutable data; imports nothing of ours, so every room may import it.

Glossary: *target* the model whose answers count; *drafter* whatever guesses its next tokens; *draft tree* the guesses
of one step (a chain is a tree of width 1); *root* the last committed token; *accepted* a drafted token that the target
itself sampled; *bonus token* the token sampled where the walk stops; *K* the drafted tokens of one row in one step;
*position* the absolute index of a token in its sequence, prompt included.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

Exactness = Literal["bitwise", "bitwise-fixed", "numeric"]
"""Rungs of the numerics ladder: bitwise at proven widths, bitwise at one fixed width, numeric."""

WorkClass = Literal["user", "background"]
FinishReason = Literal["stop", "length", "abort", "error"]

MAX_SEED = 2**53
"""Seeds are below this bound so that JavaScript clients can read back the one that was drawn."""

MAX_TREE_NODES = 63
"""Drafted nodes of one row in one step: with the root they fit one 64-bit ancestor word."""


class SamplingParams(Struct, frozen=True, omit_defaults=True):
    """Everything about a request, but its seed, that the sampled tokens depend on.

    Neutral values switch a processor off: ``top_k=0``, ``top_p=1``, ``min_p=0``, penalties 0 (repetition: 1).
    ``logprobs`` is the number of alternatives reported beside the chosen token (``None``: report nothing);
    ``prompt_logprobs`` the same for prompt tokens. ``stop_token_ids`` ends the answer like the end-of-sequence token;
    ``ignore_eos`` keeps the model's own end-of-sequence tokens from ending it. ``grammar`` is what the answer's text
    must follow, in one of llguidance's forms; empty for none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    max_tokens: int = 16
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: str = ""


class Decision(Struct, frozen=True):
    """What the policy decided for one request; made once, by the first route that matches.

    ``drafters`` empty means plain decoding (K = 0). ``auto`` says that the controller chooses among ``drafters`` per
    row; otherwise they are tried in order and the first that has a guess wins. ``k_max`` is ``None`` where only the
    drafter's own limit binds; ``k_min`` binds only while something is drafted at all. ``adaptive`` is false where the
    policy fixed K. ``reason`` says why nothing is drafted, where nothing is.
    """

    route: str
    revision: str
    rule: str = ""
    backends: tuple[str, ...] = ("engine",)
    drafters: tuple[str, ...] = ()
    auto: bool = False
    k_min: int = 0
    k_max: int | None = None
    adaptive: bool = True
    tree_width: int = 1
    tree_nodes: int = 16
    exactness: Literal["bitwise", "numeric"] = "bitwise"
    arm: str = "active"
    reason: str | None = None


class Submission(Struct, frozen=True):
    """One sequence to generate: the prompt and what was generated before travel apart, so that it can be resumed.

    ``id`` is unique per connection. ``seed`` and ``choice`` key the sampling noise; ``choice`` counts from 0 within a
    prompt. ``prediction`` is the client's Predicted Output, tokenised. ``salt`` separates cached pages by tenant.
    ``busy_share``: of background work, the share of the time that it may take while users are there; 0: none.
    """

    id: str
    prompt: list[int]
    seed: int
    params: SamplingParams
    decision: Decision
    choice: int = 0
    generated: list[int] = []
    prediction: list[int] = []
    salt: str = ""
    work: WorkClass = "user"
    busy_share: float = 0.0


class TokenLogprob(Struct, frozen=True, array_like=True):
    """Log-softmax of the raw float32 target logits: the token's own, and the best alternatives (id, logprob)."""

    token: int
    logprob: float
    top: list[tuple[int, float]] = []


class DraftCounts(Struct, array_like=True):
    """What one drafter did for one sequence. ``accepted_at[i]``: accepted at depth i + 1; ``drafted_at`` alike."""

    drafter: str
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    drafted_at: list[int] = []
    accepted_at: list[int] = []


class SequenceStats(Struct):
    """Counts and timings of one sequence as the engine saw them. Times in seconds since the engine received it.
    ``device_s``: its share of the steps that it was in, by rows, and of the drafting for them; all sequences' shares
    add up to the time that the engine was at work for them."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    steps: int = 0
    drafts: list[DraftCounts] = []
    preemptions: int = 0
    queued_s: float = 0.0
    first_token_s: float = 0.0
    draft_s: float = 0.0
    device_s: float = 0.0
    reason: str | None = None


class ErrorInfo(Struct, frozen=True):
    """An error on its way to the client: HTTP status and the four keys of OpenAI's error body."""

    message: str
    status: int = 500
    type: str = "server_error"
    code: str | None = None
    param: str | None = None


class Delta(Struct):
    """New tokens of one sequence. A delta with ``finish_reason`` is the last of its sequence; an empty one says that
    work on it begins.

    ``logprobs`` runs parallel to ``tokens`` when they were asked for. ``prompt_logprobs`` (first delta only) has one
    entry per prompt token after the first.
    """

    id: str
    tokens: list[int] = []
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob] | None = None
    finish_reason: FinishReason | None = None
    stop_token: int | None = None
    stats: SequenceStats | None = None
    error: ErrorInfo | None = None


class Numerics(Struct, frozen=True):
    """Fingerprint of everything that may change a logit's last bit, with the self-test's verdict. ``trees``: draft
    trees keep what ``exactness`` promises; where not, tree drafters draft chains on bitwise routes."""

    fingerprint: str
    device: str
    dtype: str
    torch: str
    exactness: Exactness
    widths: list[int]
    prefill_width: int
    threads: int
    narrow_threads: int
    path: str
    trees: bool = False
    detail: str = ""


class ModelInfo(Struct, frozen=True):
    """What the server must know of the loaded target. ``vocab_size`` counts ids the tokenizer knows."""

    name: str
    fingerprint: str
    max_model_len: int
    vocab_size: int
    eos_token_ids: list[int]


class DrafterInfo(Struct, frozen=True):
    """A loaded drafter: its declared type, own limit on K, context window (``None``: the target's), fingerprint, and
    what it holds beside the target, in bytes."""

    name: str
    type: str
    max_k: int
    window: int | None
    fingerprint: str
    weight_bytes: int = 0
    kv_bytes: int = 0


class RequestRecord(Struct):
    """One request from start to end: the single value that feeds logs, metrics, gate, audit and capture.

    Wall-clock ``started`` in Unix seconds; durations in seconds. ``structured``: of every choice that had to have a
    schema, whether it has: "valid", "invalid", or "truncated" before its end. ``tool_calls``: of every call in the
    answer, how it was written: "well-formed", "malformed", or "truncated".
    """

    request_id: str
    endpoint: str
    model: str
    route: str
    revision: str
    rule: str
    arm: str
    seed: int
    stream: bool
    started: float
    key_id: str = ""
    status: int = 200
    error: str | None = None
    finish_reasons: list[str] = []
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    duration_s: float = 0.0
    queued_s: float = 0.0
    device_s: float = 0.0
    steps: int = 0
    drafted: int = 0
    accepted: int = 0
    drafts: list[DraftCounts] = []
    exactness: str = ""
    reason: str | None = None
    retries: int = 0
    structured: list[str] = []
    tool_calls: list[str] = []
