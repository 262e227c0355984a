"""One audit, in small steps: the stock pass, every token judged, the end checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from specproxy.audit.ending import ending_fault
from specproxy.audit.near_tie import Judgement, judge
from specproxy.audit.stock import CHUNK, StockPass
from specproxy.bundle import AuditBundle, AuditResult, Finding, Tolerance
from specproxy.errors import InvalidRequest
from specproxy.sampling.sampler import Sampler
from specproxy.structured.grammars import Grammars

JUDGED_LOGITS = 2**19
"""Logits judged in one step: 64 tokens at a vocabulary of 8192, 4 at 128k, some 10 ms with noise on one core."""

MAX_FINDINGS = 16
"""Findings that are kept of an answer. After as many hard ones an audit ends: the answer is not this model's."""


@dataclass(frozen=True)
class AuditTarget:
    """What an audit needs of a loaded target. ``stock``: transformers' module; ``vocab_size``: ids that the tokenizer
    knows; ``max_len``: context in tokens; ``grammars``: of the same vocabulary, without which answers that have one
    cannot be audited."""

    stock: Any
    fingerprint: str
    vocab_size: int
    eos: frozenset[int]
    max_len: int
    grammars: Grammars | None = None


class AuditJob:
    """Checks ``bundle`` by repeated ``step``. Raises InvalidRequest where it cannot be an answer of this target."""

    def __init__(self, target: AuditTarget, bundle: AuditBundle, tolerance: Tolerance, chunk: int = CHUNK) -> None:
        _check(target, bundle)
        self.bundle = bundle
        self._target = target
        self._tolerance = tolerance
        start, known = len(bundle.prompt), _known(bundle.output, target.vocab_size)
        self._count = min(known + 1, len(bundle.output))
        self._pass = StockPass(target.stock, [*bundle.prompt, *bundle.output[: self._count - 1]], start - 1, chunk)
        self._sampler = Sampler(
            bundle.params,
            bundle.seed,
            bundle.choice,
            bundle.prompt,
            target.vocab_size,
            tuple(target.eos),
            torch.device("cpu"),
            None if target.grammars is None else target.grammars.matcher(bundle.params),
        )
        self._rows = np.zeros((0, target.vocab_size), np.float32)
        self._judged = 0
        self._expected = 0.0
        self._counts = {True: 0, False: 0}
        self._findings: list[Finding] = []
        if not bundle.output:
            self._end()

    @property
    def done(self) -> bool:
        """Whether ``result`` can be asked for."""
        return self._judged >= self._count or self._counts[False] >= MAX_FINDINGS

    def step(self) -> bool:
        """One chunk of the pass, or a few tokens judged, or nothing where it is done; returns whether it is."""
        if self.done:
            return True
        if not len(self._rows):
            # A copy: the rows of a chunk would otherwise be as wide as the padded vocabulary for as long as they live.
            self._rows = self._pass.step()[:, : self._target.vocab_size].numpy().copy()
            return False
        count = max(1, JUDGED_LOGITS // self._target.vocab_size)
        rows, self._rows = self._rows[:count], self._rows[count:]
        return any(self._judge(row) for row in rows)

    def result(self, seconds: float) -> AuditResult:
        """What was found. ``seconds``: what it took."""
        bundle, explained, hard = self.bundle, self._counts[True], self._counts[False]
        return AuditResult(
            bundle.request_id,
            bundle.choice,
            bundle.route,
            bundle.revision,
            bundle.drafters,
            "hard" if hard else "explained" if explained else "identical",
            greedy=bundle.params.temperature == 0.0,
            tokens=self._judged,
            explained=explained,
            expected=self._expected,
            hard=hard,
            findings=tuple(self._findings),
            seconds=seconds,
            tolerance=self._tolerance,
        )

    def _judge(self, row: np.ndarray) -> bool:
        """Judge the next token by its logits; returns whether the audit is done."""
        served, position = self.bundle.output[self._judged], len(self.bundle.prompt) + self._judged
        found = judge(row, served, self._sampler, position, self._tolerance.eps)
        self._expected += self._chance(found.margin)
        if found.expected != served:
            self._add(_finding(position, served, found))
        self._sampler.advance([served])
        self._judged += 1
        if self.done:
            self._end()
        return self.done

    def _chance(self, margin: float) -> float:
        """How likely rounding turns a ``margin`` of perturbed scores around, its errors being normal."""
        spread = self._tolerance.spread / (self.bundle.params.temperature or 1.0)
        return 0.5 * math.erfc(margin / (spread * math.sqrt(2))) if spread else 0.0

    def _end(self) -> None:
        fault = ending_fault(self.bundle, self._target.eos, self._target.max_len)
        if fault is not None:
            self._add(fault)

    def _add(self, finding: Finding) -> None:
        self._counts[finding.explained] += 1
        if len(self._findings) < MAX_FINDINGS or not finding.explained:
            # A hard one is worth more than an explained one, of which there may be many.
            soft = next((f for f in self._findings if f.explained), None)
            if len(self._findings) >= MAX_FINDINGS and soft is not None:
                self._findings.remove(soft)
            self._findings.append(finding)


def _finding(position: int, served: int, found: Judgement) -> Finding:
    text = "the stock model's logits are not numbers" if found.expected is None else ""
    scores = (_number(found.served_score), _number(found.expected_score))
    return Finding(position, "token", served, found.expected, *scores, found.explained, text)


def _number(score: float) -> float | None:
    return score if math.isfinite(score) else None


def _check(target: AuditTarget, bundle: AuditBundle) -> None:
    if bundle.fingerprint != target.fingerprint:
        raise InvalidRequest(
            f"this answer is of the model with fingerprint {bundle.fingerprint}; loaded is {target.fingerprint}"
        )
    if bundle.finish_reason == "error":
        raise InvalidRequest("this answer ended with an error; there is nothing to compare")
    length = len(bundle.prompt) + len(bundle.output)
    inside = _known(bundle.prompt, target.vocab_size) == len(bundle.prompt)
    if not bundle.prompt or length > target.max_len or not inside:
        raise InvalidRequest(
            f"expected a prompt of ids from 0 to {target.vocab_size - 1}, and with the answer at most "
            f"{target.max_len} tokens; got {len(bundle.prompt)} and {len(bundle.output)}"
        )


def _known(ids: Sequence[int], vocab_size: int) -> int:
    """How many of the ids come before the first that is not in the vocabulary."""
    return next((at for at, token in enumerate(ids) if not 0 <= token < vocab_size), len(ids))
