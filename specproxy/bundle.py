"""What an audit takes and what it finds, as data that server, engine and command line share; a bundle's file form."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from specproxy.errors import StartError
from specproxy.vocabulary import FinishReason, Numerics, SamplingParams

Verdict = Literal["identical", "explained", "hard", "dropped", "failed"]
"""Every token is the recomputed one; every other one is a near-tie; some token cannot be; not looked at, as too many
audits waited; could not be checked (``note`` says why)."""


class AuditBundle(Struct, frozen=True, forbid_unknown_fields=True):
    """A served answer with all that is needed to compute it again.

    ``fingerprint``: of the target. ``prompt``, ``output``: token ids as the target read and sampled them; the output
    holds every one, the token that ended the answer and those kept from the client included. ``finish_reason`` and
    ``stop_token``: as the engine said them, but "stop" where a stop string ended the answer. ``stop``: the request's
    stop strings; only where there are some may an answer end with "stop" and no ``stop_token``. ``drafters``: those of
    the decision. ``version``: of this form.
    """

    request_id: str
    fingerprint: str
    numerics: Numerics
    prompt: list[int]
    output: list[int]
    finish_reason: FinishReason
    params: SamplingParams
    seed: int
    choice: int
    route: str
    revision: str
    stop_token: int | None = None
    drafters: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    version: Literal[1] = 1


class Finding(Struct, frozen=True):
    """One place where the answer is not what was recomputed.

    ``position``: absolute, prompt included. ``what``: a token, or how the answer ended. ``expected``: the recomputed
    token; ``None`` where the stock model gave no number, or for an ending. Scores are perturbed ones, of the reference:
    processed logits over temperature plus noise (at temperature 0: processed logits); ``None`` where an id cannot be
    drawn at all. ``explained``: logits within eps of the reference's give the served token.
    """

    position: int
    what: Literal["token", "ending"]
    served: int
    expected: int | None = None
    served_score: float | None = None
    expected_score: float | None = None
    explained: bool = False
    text: str = ""


class Tolerance(Struct, frozen=True):
    """How far plain decoding by the engine and the stock path are apart, on texts that the target wrote.

    ``eps``: what may lie between a raw logit of one and of the other; ``largest``: the largest difference seen, at
    ``positions`` positions. ``spread``: root mean square of the difference that the two leading logits have in one and
    in the other, which says how often rounding decides a near-tie. ``ties_*`` of ``compared_*`` tokens differed between
    the two arms, at temperature 0 and 1.
    """

    eps: float
    largest: float
    spread: float
    positions: int
    ties_greedy: int
    compared_greedy: int
    ties_sampled: int
    compared_sampled: int


class AuditResult(Struct, frozen=True):
    """What an audit found. ``tokens``: how many were checked; ``explained``, ``hard``: how many findings of either
    kind, of which ``findings`` holds the first. ``expected``: near-ties that rounding alone decides otherwise in an
    answer like this one, on average (see ``excess``). ``seconds``: of the engine's time. ``note``: why there is none.
    """

    request_id: str
    choice: int
    route: str
    revision: str
    drafters: tuple[str, ...]
    verdict: Verdict
    greedy: bool = False
    tokens: int = 0
    explained: int = 0
    expected: float = 0.0
    hard: int = 0
    findings: tuple[Finding, ...] = ()
    seconds: float = 0.0
    tolerance: Tolerance | None = None
    note: str = ""


def without_verdict(bundle: AuditBundle, verdict: Literal["dropped", "failed"], note: str) -> AuditResult:
    """The result of an audit that did not take place."""
    named = (bundle.request_id, bundle.choice, bundle.route, bundle.revision, bundle.drafters)
    return AuditResult(*named, verdict, bundle.params.temperature == 0.0, note=note)


def excess(explained: int, expected: float) -> float:
    """The chance of so many explained near-ties, or more, where ``expected`` are decided by rounding on average.

    Each is rare and on its own, so their number is Poisson's. Sums over answers may be passed. A fault too small to
    make any token impossible shows here: it makes near-ties fall the other way more often than rounding does.
    """
    if explained == 0:
        return 1.0
    if expected <= 0.0:
        return 0.0
    logs = [-expected + k * math.log(expected) - math.lgamma(k + 1) for k in range(explained)]
    return max(0.0, 1.0 - math.fsum(map(math.exp, logs)))


def read_bundle(file: Path) -> AuditBundle:
    """A bundle from its JSON file. Raises StartError."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=AuditBundle)
    except OSError as error:
        raise StartError(f"{file}: cannot be read: {error.strerror or error}") from None
    except msgspec.MsgspecError as error:
        raise StartError(f"{file}: not an audit bundle: {error}; expected the JSON of one answer") from None


def write_bundle(bundle: AuditBundle, file: Path) -> None:
    """Write a bundle as JSON."""
    file.write_bytes(msgspec.json.encode(bundle) + b"\n")
