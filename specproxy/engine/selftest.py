"""Which rung of the numerics ladder this machine reaches, measured at start.

A row's logits may change in their last bits when the number of rows in a product, or the padded length of a reduction,
selects another kernel. The test decodes the same tokens at every candidate width, and prefills them in chunks, across a
key-block boundary, alone and beside another sequence, and compares bits. What agrees is used; nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specproxy.engine.runner import Rules, Runner
from specproxy.engine.step import Step, prefill_step
from specproxy.kernels.attention import KEY_BLOCK, KVBuffers
from specproxy.models.base import StepModel
from specproxy.sampling.sampler import Row, Sampler, sample_rows
from specproxy.vocabulary import SamplingParams

CANDIDATES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 24, 32, 40, 48, 56, 64)
"""Decode widths that are tried, the widest last: it is what the others are compared with."""

FIXED_WIDTH = 16
"""The one width of the second rung: it holds the root and up to 15 drafted tokens."""

PREFILL_ROWS = 128
"""Rows of a prefill chunk. On two CPU cores 128 rows of the house target take 12 ms, 64 take 8, so long prompts gain
a quarter over 64 and short ones lose little."""


class SelfTest:
    """Bitwise comparisons on one loaded model. Uses buffers of its own, so that no page of the pool is touched."""

    def __init__(self, model: StepModel, page_size: int, prefill_rows: int = PREFILL_ROWS) -> None:
        self._model = model
        self._page = page_size
        self._prefill_rows = prefill_rows
        limit = model.spec.max_len
        self._context = max(0, min(KEY_BLOCK - 24, limit - CANDIDATES[-1] - 1))
        self._span = min(CANDIDATES[-1], limit - self._context - 1)
        pages = -(-(self._context + self._span + prefill_rows) // page_size) + 1
        self._tables = [
            list(range(KVBuffers.RESERVED_PAGES + i * pages, KVBuffers.RESERVED_PAGES + (i + 1) * pages))
            for i in range(2)
        ]
        self._kv = KVBuffers(
            model.spec.layers,
            KVBuffers.RESERVED_PAGES + 2 * pages,
            page_size,
            model.spec.dtype,
            model.spec.device,
        )
        generator = torch.Generator().manual_seed(20260101)
        length = self._context + self._span + 1
        self._tokens = torch.randint(0, model.spec.vocab_size, (2, length), generator=generator).tolist()

    def run(self) -> Rules:
        """The best rung that holds."""
        if self._span < CANDIDATES[-1]:
            return self._numeric(f"a context of {self._model.spec.max_len} tokens is too short to test widths")
        runner = self._runner(())
        for i in range(2):
            self._prefill(runner, i, self._context)
        reference = self._decode(self._span)
        if not bool(torch.isfinite(reference).all()):
            return self._numeric("the reference logits are not finite")
        if not self._chains_agree(reference):
            return self._numeric("a chain's bits depend on its length or on its neighbours")
        proven = [w for w in CANDIDATES if self._same(w, reference)]
        if not self._cutoffs_hold(reference):
            return self._numeric("sampling one row and many rows differed")
        if len(proven) > 1 and proven[0] <= FIXED_WIDTH:
            one = self._provenance_agrees(runner, reference)
            return Rules("bitwise", tuple(proven), proven[-1], self._prefill_rows, one)
        fixed = self._decode(FIXED_WIDTH)
        if self._same(FIXED_WIDTH, fixed):
            return Rules("bitwise-fixed", (FIXED_WIDTH,), FIXED_WIDTH, self._prefill_rows)
        return self._numeric(f"rows differ between steps of {FIXED_WIDTH} rows that hold other sequences")

    def _numeric(self, why: str) -> Rules:
        return Rules("numeric", (), CANDIDATES[-1], self._prefill_rows, detail=why)

    def _runner(self, widths: tuple[int, ...]) -> Runner:
        return Runner(self._model, self._kv, Rules("bitwise", widths, CANDIDATES[-1], self._prefill_rows))

    def _prefill(self, runner: Runner, which: int, count: int) -> None:
        for base in range(0, count, self._prefill_rows):
            step = prefill_step(self._tokens[which], base, 0, count, self._tables[which], self._kv, self._prefill_rows)
            runner.run(step)

    def _decode(self, width: int, span: int | None = None) -> Tensor:
        """Logits [span, V] of the first sequence's tokens after the context, ``width`` rows a step."""
        runner, out = self._runner((width,)), []
        tokens, end = self._tokens[0], self._context + (span or self._span)
        for at in range(self._context, end, width):
            step = Step("decode")
            step.add_chain(tokens[at : min(at + width, end)], at, self._tables[0], self._page, 0)
            out.append(runner.run(step)[0])
        return torch.cat(out)

    def _same(self, width: int, reference: Tensor) -> bool:
        """Whether steps of ``width`` rows give the reference's bits, alone and behind another sequence's rows."""
        span = self._span if width >= 8 else min(self._span, 4 * max(width, 8))
        if not torch.equal(self._decode(width, span), reference[:span]):
            return False
        if width == 1:
            return True
        mine = max(1, width // 2)
        step = Step("decode")
        at = self._context
        step.add_chain(self._tokens[1][at : at + width - mine], at, self._tables[1], self._page, 0)
        first = len(step.ids)
        step.add_chain(self._tokens[0][at : at + mine], at, self._tables[0], self._page, 0)
        return torch.equal(self._runner((width,)).run(step)[0][first : first + mine], reference[:mine])

    def _chains_agree(self, reference: Tensor) -> bool:
        """Whether chains of every length give the reference's bits in the widest step, beside another sequence."""
        at, width = self._context, CANDIDATES[-1]
        for length in range(1, 33):
            step = Step("decode")
            step.add_chain(self._tokens[1][at : at + width - length], at, self._tables[1], self._page, 0)
            step.add_chain(self._tokens[0][at : at + length], at, self._tables[0], self._page, 0)
            if not torch.equal(self._runner((width,)).run(step)[0][width - length :], reference[:length]):
                return False
        return True

    def _provenance_agrees(self, runner: Runner, reference: Tensor) -> bool:
        """Whether prefilling the decoded tokens writes the same KV, seen through the logits behind them."""
        total = self._context + self._span
        self._prefill(runner, 0, total - 8)
        tail = Step("decode")
        tail.add_chain(self._tokens[0][total - 8 : total], total - 8, self._tables[0], self._page, 0)
        return torch.equal(runner.run(tail)[0], reference[-8:])

    def _cutoffs_hold(self, logits: Tensor) -> bool:
        """Whether a row is sampled alike alone and among others, every processor on."""
        rows = [
            Row(
                Sampler(
                    params,
                    7 + i,
                    0,
                    self._tokens[0][:16],
                    self._model.spec.vocab_size,
                    (),
                    torch.device(self._model.spec.device),
                ),
                (),
                self._context + i,
            )
            for i, params in enumerate(_PROBES)
        ]
        together = sample_rows(logits[: len(rows)], rows)
        return together == [sample_rows(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]


_PROBES: Sequence[SamplingParams] = [
    SamplingParams(temperature=t, top_p=p, top_k=k, min_p=m, repetition_penalty=r)
    for t in (0.0, 0.7, 1.3)
    for p, k, m, r in ((1.0, 0, 0.0, 1.0), (0.9, 0, 0.0, 1.0), (0.8, 40, 0.02, 1.1))
]
