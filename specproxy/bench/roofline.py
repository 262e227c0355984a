"""The parts of a target's step one by one: bytes that each must move, and how long it takes on cold weights.

Each part runs on several copies of what it reads, one behind the other (on a GPU in a captured graph), so that weights
and keys come from memory and not from a cache; what is small in a real step (activations) is small here too, and stays
in the cache. On a CPU the parts are those of the layer loop; on a GPU ``roofline_device.py`` adds the kernels.

Shapes: T rows, D hidden width, I intermediate width, Hq query heads, Hk key heads, W head width, V vocabulary.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from msgspec import Struct
from torch import Tensor

from specproxy.bench.field import Grid
from specproxy.bench.timing import Clock, Timing, Work, make_clock
from specproxy.kernels.attention import Scoring, Span
from specproxy.kernels.paged import KVBuffers, LayerShape
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import ModelSpec
from specproxy.models.linear import make_linear
from specproxy.models.norm import make_rms_norm
from specproxy.sampling.sampler import Row, Sampler, sample_rows
from specproxy.vocabulary import SamplingParams

PART_ROWS = (1, 16)
PAGE_SIZE = 64
COLD_BYTES = {"cuda": 600_000_000, "cpu": 100_000_000}
"""Read before a copy is read again: several times what a GPU's second-level cache holds, or a core's share of a CPU's
last one."""
MOST_COPIES = 64
SCALE = 0.02
LIBRARY = ", library"
"""Behind the name of a product that the library computes, beside our own kernel's."""


class PartTime(Struct, frozen=True):
    """One part at ``rows`` rows, ``bytes`` moved by one run of it."""

    name: str
    rows: int
    bytes: int
    time: Timing


@dataclass
class Part:
    """Work to measure: ``copies`` do the same on memory of their own."""

    name: str
    rows: int
    bytes: int
    copies: list[Work]


@dataclass(frozen=True)
class Sizes:
    """Of a layer and of the logits; ``ids``: those that may be drawn."""

    hidden: int
    intermediate: int
    heads: int
    shape: LayerShape
    layers: int
    vocab: int
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, config: Any, spec: ModelSpec) -> Sizes:
        """Those of a model with transformers' ``config``."""
        shape = spec.layers[0]
        return cls(
            spec.hidden_size,
            config.intermediate_size,
            config.num_attention_heads,
            shape,
            len(spec.layers),
            spec.vocab_size,
            spec.dtype,
            spec.device,
        )

    @property
    def item(self) -> int:
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def qkv(self) -> int:
        """Width of queries, keys and values side by side."""
        return self.heads * self.shape.k_dim + self.shape.heads * (self.shape.k_dim + self.shape.v_dim)

    def random(self, *size: int) -> Tensor:
        """Numbers as weights have them."""
        return torch.empty(size, dtype=self.dtype, device=self.device).normal_(0, SCALE)

    def products(self) -> dict[str, tuple[int, int]]:
        """Results and inputs of every product but the gated one."""
        return {
            "qkv": (self.qkv, self.hidden),
            "o": (self.hidden, self.heads * self.shape.v_dim),
            "down": (self.hidden, self.intermediate),
            "head": (self.vocab, self.hidden),
        }

    def buffers(self, layers: int, tokens: int) -> tuple[KVBuffers, list[int]]:
        """Keys and values of ``layers`` layers with room for ``tokens`` tokens, and the table of their pages."""
        first, pages = KVBuffers.RESERVED_PAGES, -(-tokens // PAGE_SIZE)
        kv = KVBuffers.allocate([self.shape] * layers, first + pages, PAGE_SIZE, self.dtype, self.device)
        for layer in kv.layers:
            layer.normal_()
        return kv, list(range(first, first + pages))

    def copies(self, size: int, most: int = MOST_COPIES) -> int:
        """How many copies of ``size`` bytes are in no cache when it is a copy's turn again; ``most`` for small ones."""
        cold = COLD_BYTES["cuda" if self.device.startswith("cuda") else "cpu"]
        return max(2, min(most, -(-cold // size)))


def measure_parts(config: Any, spec: ModelSpec, contexts: Sequence[int], runs: int) -> list[PartTime]:
    """Every part at one row and at a verified draft's; attention at every context. Call where gradients are off."""
    sizes, clock = Sizes.of(config, spec), make_clock(spec.device)
    found = []
    for make in part_makers(sizes, contexts):
        found += [
            PartTime(part.name, part.rows, part.bytes, time_part(part, clock, spec.device, runs)) for part in make()
        ]
        gc.collect()  # what one kind of part holds may be as much as there is
    return found


def part_makers(sizes: Sizes, contexts: Sequence[int]) -> list[Callable[[], Iterator[Part]]]:
    """Makers of parts, each of which holds its own memory and no other's."""
    attention = [partial(attention_parts, sizes, context) for context in contexts]
    if not sizes.device.startswith("cuda"):
        return [
            *(partial(product_parts, sizes, name, make_linear) for name in sizes.products()),
            partial(gated_parts, sizes),
            partial(norm_parts, sizes),
            *attention,
            partial(sample_parts, sizes),
        ]
    from specproxy.bench.roofline_device import device_makers

    return [*device_makers(sizes), *attention]


def time_part(part: Part, clock: Clock, device: str, runs: int) -> Timing:
    """One run of one copy, from runs of all copies."""

    def every() -> None:
        for copy in part.copies:
            copy()

    work: Work = every
    if device.startswith("cuda"):
        from specproxy.engine.graphs import Captured

        work = Captured(every, torch.cuda.graph_pool_handle()).replay
    work()
    count = len(part.copies)
    return Timing.of([clock.seconds(work) / count for _ in range(runs)])


def product_parts(
    sizes: Sizes, name: str, make: Callable[[Tensor, Tensor | None], Callable[[Tensor], Tensor]], label: str = ""
) -> Iterator[Part]:
    """The product ``name`` over several weights."""
    results, inputs = sizes.products()[name]
    size = results * inputs * sizes.item
    linears = [make(sizes.random(results, inputs), None) for _ in range(sizes.copies(size))]
    for rows in PART_ROWS:
        x = sizes.random(rows, inputs)
        moved = size + rows * (results + inputs) * sizes.item
        yield Part(f"{name} {results} x {inputs}{label}", rows, moved, [partial(linear, x) for linear in linears])


def gated_parts(sizes: Sizes) -> Iterator[Part]:
    """Gate and up rows in one product, as the layer loop has them."""
    results, inputs = 2 * sizes.intermediate, sizes.hidden
    size = results * inputs * sizes.item
    linears = [make_linear(sizes.random(results, inputs)) for _ in range(sizes.copies(size))]
    for rows in PART_ROWS:
        x = sizes.random(rows, inputs)
        moved = size + rows * (results + inputs) * sizes.item
        yield Part(f"gate and up {results} x {inputs}", rows, moved, [partial(linear, x) for linear in linears])


def norm_parts(sizes: Sizes) -> Iterator[Part]:
    """RMSNorm alone."""
    norms = [make_rms_norm(sizes.random(sizes.hidden), 1e-5) for _ in range(MOST_COPIES)]
    for rows in PART_ROWS:
        x = sizes.random(rows, sizes.hidden)
        moved = (2 * rows + 1) * sizes.hidden * sizes.item
        yield Part(f"norm {sizes.hidden}", rows, moved, [partial(norm, x) for norm in norms])


def attention_parts(sizes: Sizes, context: int) -> Iterator[Part]:
    """Attention of one sequence's rows behind ``context`` tokens, each copy a layer of its own."""
    token = sizes.shape.width * sizes.item
    kv, table = sizes.buffers(sizes.copies(context * token), context + max(PART_ROWS))
    scoring = Scoring(sizes.shape.k_dim**-0.5)
    for rows in PART_ROWS:
        at = range(context, context + rows)
        slots = torch.tensor([table[p // PAGE_SIZE] * PAGE_SIZE + p % PAGE_SIZE for p in at], device=sizes.device)
        plan = plan_attention(
            [Span(0, rows, context, table)], slots, kv, exact=True, group=sizes.heads // sizes.shape.heads
        )
        q = sizes.random(rows, sizes.heads, sizes.shape.k_dim)
        moved = (context + rows) * token + 2 * q.numel() * sizes.item
        works: list[Work] = [partial(plan.attend, kv, layer, q, scoring) for layer in range(len(kv.layers))]
        yield Part(f"attention, {context} tokens", rows, moved, works)


def sample_parts(sizes: Sizes) -> Iterator[Part]:
    """The sampler with and without cut-offs, as the engine calls it on a CPU."""
    for rows in PART_ROWS:
        size = rows * sizes.vocab * sizes.item
        logits = [sizes.random(rows, sizes.vocab) for _ in range(sizes.copies(size, 8))]
        for label, drawn in draws(sizes, rows).items():
            yield Part(f"{label}, {sizes.vocab} ids", rows, size, [partial(sample_rows, x, drawn) for x in logits])


def draws(sizes: Sizes, rows: int) -> dict[str, list[Row]]:
    """Rows to sample, without and with a cut-off."""
    ways = {"draw": SamplingParams(temperature=0.8), "draw, top_p": SamplingParams(temperature=0.8, top_p=0.9)}
    return {
        label: [
            Row(Sampler(params, 7, 0, [0], sizes.vocab, (), torch.device(sizes.device)), (), 100 + row)
            for row in range(rows)
        ]
        for label, params in ways.items()
    }


def parts_table(parts: Sequence[PartTime], bandwidth: float) -> Grid:
    """A row a part: bytes, time, share of the bandwidth, at each number of rows."""
    head = ["part", *(f"{what}, {rows} row{'s' if rows > 1 else ''}" for rows in PART_ROWS for what in WHAT)]
    lines = []
    for name in dict.fromkeys(part.name for part in parts):
        mine = {part.rows: part for part in parts if part.name == name}
        cells = [cell for rows in PART_ROWS for cell in _cells(mine.get(rows), bandwidth)]
        lines.append([name, *cells])
    return Grid(f"parts of a step on cold weights; share of {bandwidth / 1e9:.0f} GB/s read in this run", head, lines)


def over_library(parts: Sequence[PartTime], layers: int) -> dict[int, float]:
    """By rows: time of all products of a step over that of the library's, where those were measured beside ours."""
    found = {}
    for rows in PART_ROWS:
        times = {part.name: part.time.median for part in parts if part.rows == rows}
        ours = [name for name in times if name + LIBRARY in times]
        often = {name: 1 if name.startswith("head") else layers for name in ours}
        if ours:
            whole, library = (sum(often[name] * times[name + end] for name in ours) for end in ("", LIBRARY))
            found[rows] = whole / library
    return found


WHAT = ("MB", "us [p10-p90]", "share")


def _cells(part: PartTime | None, bandwidth: float) -> list[str]:
    if part is None:
        return ["-"] * len(WHAT)
    median, low, high = (1e6 * seconds for seconds in (part.time.median, part.time.p10, part.time.p90))
    share = part.bytes / part.time.median / bandwidth
    return [f"{part.bytes / 1e6:.3g}", f"{median:.2f} [{low:.2f}-{high:.2f}]", f"{share:.2f}"]
