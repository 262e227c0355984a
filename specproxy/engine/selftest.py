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
from specproxy.engine.threads import Threads
from specproxy.kernels.paged import KEY_BLOCK, KVBuffers
from specproxy.models.base import StepModel
from specproxy.sampling.sampler import Row, Sampler, sample_rows
from specproxy.vocabulary import SamplingParams

CANDIDATES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 20, 24, 32, 40, 48, 56, 64)
"""Decode widths that are tried, the widest last: it is what the others are compared with."""

WIDEST = CANDIDATES[-1]

CONTEXTS = (2 * KEY_BLOCK + 40, 4 * KEY_BLOCK - 24)
"""Tokens before the tested ones: well inside a key block, and where the tested ones cross into the next."""

LONGEST_CHAIN = 32

ELEMENTS = 1_000_000
MAX_PROBES = 4096
"""Results (rows at most) compared for each product: rounding to bf16 hides most differences of the sums behind it."""

TRIM = 16
"""Prefill chunks lose padding rows in multiples of this, where that is proven to change nothing."""

FIXED_WIDTH = 16
"""The one width of the second rung: it holds the root and up to 15 drafted tokens."""

PREFILL_ROWS = 128
"""Rows of a prefill chunk, as many as a key block has keys, so that all rows of a chunk read equally far."""


TREES = ((-1, -1, 0, 1, 1, 2, 4, 0, 6, 5), (*(-1, 0, 1, 2, 3, 4, 5, 6), *(-1, 8, 9, 10, 11), *(3, 13, 14)))
"""Parents of the trees that are tried: one of short branches, levels one behind the other, and one of long ones."""


class SelfTest:
    """Bitwise comparisons on one loaded model. Uses buffers of its own, so that no page of the pool is touched."""

    def __init__(self, model: StepModel, page_size: int, threads: Threads, prefill_rows: int = PREFILL_ROWS) -> None:
        self._model = model
        self._threads = threads
        self._page = page_size
        self._prefill_rows = prefill_rows
        last = model.spec.max_len - WIDEST - 1
        self._contexts = [at for at in CONTEXTS if at <= last]
        length = max(self._contexts, default=0) + WIDEST + 1
        pages = -(-(length + prefill_rows) // page_size) + 1
        self._tables = [
            list(range(KVBuffers.RESERVED_PAGES + i * pages, KVBuffers.RESERVED_PAGES + (i + 1) * pages))
            for i in range(2)
        ]
        self._kv = KVBuffers.allocate(
            model.spec.layers,
            KVBuffers.RESERVED_PAGES + 2 * pages,
            page_size,
            model.spec.dtype,
            model.spec.device,
        )
        self._any = Runner(model, self._kv, Rules("bitwise", (), WIDEST, prefill_rows), threads)
        generator = torch.Generator().manual_seed(20260101)
        self._tokens = torch.randint(0, model.spec.vocab_size, (2, length), generator=generator).tolist()

    def run(self) -> Rules:
        """The best rung that holds."""
        if not self._contexts:
            return self._numeric(f"a context of {self._model.spec.max_len} tokens is too short to test widths")
        for at in self._contexts:
            reference = self._reference(at)
            if not bool(torch.isfinite(reference).all()):
                return self._numeric("the reference logits are not finite")
            if not self._chains_agree(at, reference):
                return self._numeric(f"at {at} tokens a chain's bits depend on its length or on its neighbours")
        at = self._contexts[-1]
        reference = self._reference(at)
        proven = [w for w in CANDIDATES if self._products_agree(w) and self._same(at, w, reference)]
        if not self._cutoffs_hold(at, reference):
            return self._numeric("sampling one row and many rows differed")
        if len(proven) > 1 and proven[0] <= FIXED_WIDTH:
            trees = all(self._trees_agree(at, tuple(proven)) for at in self._contexts)
            one = self._provenance_agrees(at, self._reference(at))
            trim = TRIM if self._trim_agrees(at) else 0
            return Rules("bitwise", tuple(proven), proven[-1], self._prefill_rows, one, trees, trim)
        if self._same(at, FIXED_WIDTH, self._decode(at, FIXED_WIDTH, WIDEST)):
            trees = all(self._trees_agree(at, (FIXED_WIDTH,)) for at in self._contexts)
            return Rules("bitwise-fixed", (FIXED_WIDTH,), FIXED_WIDTH, self._prefill_rows, trees=trees)
        return self._numeric(f"rows differ between steps of {FIXED_WIDTH} rows that hold other sequences")

    def _numeric(self, why: str) -> Rules:
        return Rules("numeric", (), WIDEST, self._prefill_rows, detail=why)

    def _runner(self, widths: tuple[int, ...]) -> Runner:
        return self._any.under(Rules("bitwise", widths, WIDEST, self._prefill_rows))

    def _prefill(self, which: int, count: int) -> None:
        for base in range(0, count, self._prefill_rows):
            self._prefill_chunk(which, base, base, min(base + self._prefill_rows, count), 0)

    def _prefill_chunk(self, which: int, base: int, start: int, end: int, trim: int) -> Tensor:
        """Logits [1, V] behind the prompt's tokens up to ``end``."""
        tokens, table = self._tokens[which], self._tables[which]
        step = prefill_step(tokens, base, start, end, table, self._kv, self._prefill_rows, trim)
        return self._runner(CANDIDATES).run(step)[0]

    def _reference(self, at: int) -> Tensor:
        """Prefill both sequences up to ``at``; logits of the first one's next tokens at the widest step."""
        self._prefill(0, at)
        self._prefill(1, at)
        return self._decode(at, WIDEST, WIDEST)

    def _decode(self, at: int, width: int, count: int) -> Tensor:
        """Logits [count, V] of the first sequence's tokens from ``at`` on, ``width`` rows a step."""
        runner, out = self._runner((width,)), []
        for start in range(at, at + count, width):
            step = Step("decode")
            stop = min(start + width, at + count)
            step.add_chain(self._tokens[0][start:stop], start, self._tables[0], self._page, 0)
            out.append(runner.run(step)[0])
        return torch.cat(out)

    def _beside(self, at: int, width: int, length: int) -> Tensor:
        """Logits [length, V] of a chain of the first sequence behind rows of the other that fill the step."""
        step = Step("decode")
        if width > length:
            step.add_chain(self._tokens[1][at : at + width - length], at, self._tables[1], self._page, 0)
        step.add_chain(self._tokens[0][at : at + length], at, self._tables[0], self._page, 0)
        return self._runner((width,)).run(step)[0][width - length :]

    def _same(self, at: int, width: int, reference: Tensor) -> bool:
        """Whether steps of ``width`` rows give the reference's bits, alone and behind another sequence's rows."""
        count = WIDEST if width >= 8 else 4 * width
        mine = max(1, width // 2)
        return torch.equal(self._decode(at, width, count), reference[:count]) and torch.equal(
            self._beside(at, width, mine), reference[:mine]
        )

    def _products_agree(self, width: int) -> bool:
        """Whether every product gives the same bits ``width`` rows at a time as at the widest.

        A row alone may take another kernel whose sums differ in the last float32 bit: in bf16 that shows in one result
        of fifty thousand, too few for the forwards of this test, and enough to split an answer.
        """
        generator = torch.Generator().manual_seed(20260102)
        for product, width_in in self._model.products():
            probe = torch.randn(WIDEST, width_in, generator=generator).to(self._model.spec.dtype)
            results = product(probe.to(self._model.spec.device)).shape[1]
            rows = max(1, min(MAX_PROBES, ELEMENTS // results) // WIDEST) * WIDEST
            x = torch.randn(rows, width_in, generator=generator).to(self._model.spec.dtype)
            x = x.to(self._model.spec.device)
            self._threads.enter(WIDEST)
            widest = torch.cat([product(part) for part in x.split(WIDEST)])
            self._threads.enter(width)
            narrow = torch.cat([product(part) for part in x[: rows // width * width].split(width)])
            if not torch.equal(narrow, widest[: len(narrow)]):
                return False
        return True

    def _chains_agree(self, at: int, reference: Tensor) -> bool:
        """Whether chains of every length give the reference's bits in the widest step, beside another sequence."""
        return all(
            torch.equal(self._beside(at, WIDEST, length), reference[:length]) for length in range(1, LONGEST_CHAIN + 1)
        )

    def _trees_agree(self, at: int, widths: tuple[int, ...]) -> bool:
        """Whether every node of two trees gives the bits that it gives as the end of its own path, within a key block
        and where the tree's third level is in the next."""
        crossing = at - at % KEY_BLOCK + KEY_BLOCK - 3
        places = [place for place in (at, crossing) if place <= self._contexts[-1] + WIDEST // 2]
        return all(self._tree_agrees(place, widths, parents) for place in places for parents in TREES)

    def _tree_agrees(self, at: int, widths: tuple[int, ...], parents: Sequence[int]) -> bool:
        runner = self._runner(widths)
        root, *tokens = self._tokens[1][: len(parents) + 1]
        tree = Step("decode")
        tree.add_tree(root, tokens, parents, at, self._tables[0], self._page)
        together = runner.run(tree)[0]
        for node in range(len(parents)):
            path = [node]
            while parents[path[0]] >= 0:
                path.insert(0, parents[path[0]])
            chain = Step("decode")
            chain.add_chain([root, *(tokens[i] for i in path)], at, self._tables[0], self._page, len(path))
            if not torch.equal(runner.run(chain)[0][0], together[node + 1]):
                return False
        return True

    def _provenance_agrees(self, at: int, reference: Tensor) -> bool:
        """Whether prefilling the decoded tokens writes the same KV, seen through the logits behind them."""
        tail = WIDEST - 8
        self._prefill(0, at + tail)
        step = Step("decode")
        step.add_chain(self._tokens[0][at + tail : at + WIDEST], at + tail, self._tables[0], self._page, 0)
        return torch.equal(self._runner(()).run(step)[0], reference[tail:])

    def _trim_agrees(self, at: int) -> bool:
        """Whether trimmed chunks of every width write what whole chunks do, and sample alike behind them."""
        rows, slots = self._prefill_rows, self._tables[0][0] * self._page + torch.arange(at)
        self._prefill(0, at)
        whole = [layer[:, slots].clone() for layer in self._kv.layers]
        for width in range(TRIM, rows, TRIM):
            for base in range(0, at - rows + 1, rows):
                middle = base + width
                expected = self._prefill_chunk(0, base, base, middle, 0)
                if not torch.equal(expected, self._prefill_chunk(0, base, base, middle, TRIM)):
                    return False
                self._prefill_chunk(0, base, middle, base + rows, TRIM)
            done = at // rows * rows
            if not all(
                torch.equal(a[:, :done], b[:, slots[:done]]) for a, b in zip(whole, self._kv.layers, strict=True)
            ):
                return False
        return True

    def _cutoffs_hold(self, at: int, logits: Tensor) -> bool:
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
                at + i,
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
