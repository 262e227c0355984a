"""A small language model of the same vocabulary as drafter.

Coupled drafting: the draft model's logits go through the request's own processors and the request's own noise, so its
guess is what the target would sample if both distributions were equal (Daliri, Musco, Suresh, arXiv 2408.07978).

Its KV lives in the target's pages, in buffers of its own: page p, offset o holds the same token in both. A shared
prefix is therefore shared by the draft model too, as far as it had filled the page; the rest it computes when it is
first asked. Nothing here needs to be bitwise reproducible: a draft only guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from msgspec import Struct
from torch import Tensor

from specproxy.drafters.base import DraftBatch, DraftContext, DraftRow, Memory, Needs
from specproxy.drafters.forms import Form, chain, run_of
from specproxy.drafters.growth import Ask, Draw, Grower
from specproxy.drafters.held import held_bytes
from specproxy.drafters.registry import Host, Options, read_options
from specproxy.errors import ModelLoadError
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import StepModel, query_group
from specproxy.models.compiled import CompiledStep, compiled_step
from specproxy.models.loading import load_model, tokenizer_hash
from specproxy.models.native import native_model

if TYPE_CHECKING:
    from specproxy.drafters.lanes import Entry, LaneRows, Lanes

CATCH_UP_ROWS = 256
"""Committed tokens computed at once when the draft model is behind (a prompt, a resume)."""

DEFAULT_MAX_K = 12
"""Longest chain: past a dozen the chance that a sequential draft is still right rarely pays for its forward."""


class DraftModelOptions(Struct, frozen=True, forbid_unknown_fields=True):
    """``path``: a model folder, a Hugging Face id, or "house". ``max_k``: longest chain drafted. ``compile``: "auto"
    compiles the steps of a small model on CPU where there is a C++ compiler, "off" never does. ``draw``: see Draw.
    ``grow``: the shape that it is grown into, as the target's ``model.grow``."""

    path: str
    max_k: int = DEFAULT_MAX_K
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    compile: Literal["auto", "off"] = "auto"
    draw: Draw = "coupled"
    grow: str = ""


def few_widths(rows: int) -> int:
    """Rows to run for ``rows`` real ones: numbers of three binary digits, at most a quarter more.

    oneDNN keeps about half a megabyte for each shape of a product, and up to 1024 of them: with a width for every
    length of a prompt the process grew for minutes (measured over 550 mixed requests: by 179 MB; with this by 66).
    """
    unit = 1 << max(0, (rows - 1).bit_length() - 3)
    return -(-rows // unit) * unit


@dataclass
class _Progress:
    """What the draft model has computed of one sequence: KV of ``tokens`` stands in the pages, in order; the first
    ``committed`` of them are the sequence's own, the rest were drafts."""

    tokens: list[int] = field(default_factory=list)
    committed: int = 0


class DraftModel:
    """Drafts chains with a causal language model; ``kv``: its own, in the pool's pages. Small steps go through
    ``compiled`` where there is one."""

    def __init__(
        self,
        name: str,
        model: StepModel,
        kv: KVBuffers,
        compiled: CompiledStep | None,
        host: Host,
        max_k: int,
        draw: Draw = "coupled",
        *,
        lanes: bool = False,
    ) -> None:
        """``lanes``: the target runs in rounds; the draft model can where it is on a GPU's path itself."""
        self.name = name
        self.needs = Needs(
            place="device",
            own_kv=True,
            window=model.spec.max_len,
            max_k=max_k,
            lanes=lanes and model.spec.path_kind == "device",
            prior=(0.85,),
        )
        self.fingerprint = model.spec.fingerprint
        self._model = model
        self._kv = kv
        self._compiled = compiled
        self._filled = bytearray(host.num_pages)
        self._weight_bytes = held_bytes(model)
        self._coupled = draw == "coupled"
        self._grower = Grower(self, draw)
        host.on_allocate(self._forget_page)

    def memory(self) -> Memory:
        """Weights and KV; what a compiled step keeps of the weights is not known."""
        return Memory(self._weight_bytes, self._kv.bytes())

    def _forget_page(self, page: int) -> None:
        self._filled[page] = 0
        self._kv.zero_page(page)

    def prefill(self, ctx: DraftContext) -> None:
        """Take over what is in shared pages; the prompt itself is computed when a draft is first wanted."""
        for row in ctx.rows:
            row.state = self._begin(row)
            row.seen = _progress(row).committed

    def _begin(self, row: DraftRow) -> _Progress:
        size, known = self._kv.page_size, 0
        for page in row.pages:
            if not self._filled[page]:
                break
            known += size
        known = min(known, len(row.tokens) - 1)
        return _Progress(list(row.tokens[:known]), known)

    def propose(self, ctx: DraftContext, out: DraftBatch) -> None:
        """Chains: one forward for what is new, then one per further token for all rows at once."""
        self._grower.propose(ctx, out)

    def extend(self, nodes: Sequence[Ask]) -> Tensor:
        """See growth.Source."""
        return self._forward([(node.row, [node.token]) for node in nodes])

    def catch_up(self, rows: Sequence[DraftRow]) -> Tensor:
        """See growth.Source."""
        work = []
        for row in rows:
            done, tokens = self._done(row), row.tokens
            _progress(row).committed = row.seen = len(tokens)
            while len(tokens) - len(done) > CATCH_UP_ROWS:
                self._forward([(row, tokens[len(done) : len(done) + CATCH_UP_ROWS])])
            work.append((row, tokens[len(done) :]))
        logits = self._forward(work)
        for row in rows:
            self._mark(row, len(row.tokens))
        return logits

    def _done(self, row: DraftRow) -> list[int]:
        """Tokens whose KV stands in the pages, cut to what is committed, the last token left out; the row's own list,
        which grows with what is computed."""
        if row.state is None:
            row.state = self._begin(row)
        progress = _progress(row)
        done, tokens = progress.tokens, row.tokens
        limit = min(len(done), len(tokens) - 1)
        same = min(progress.committed, limit)
        while same < limit and done[same] == tokens[same]:
            same += 1
        del done[same:]
        return done

    def _mark(self, row: DraftRow, count: int) -> None:
        """Note the pages that are full of the first ``count`` committed tokens: others may share them."""
        for page in row.pages[: count // self._kv.page_size]:
            self._filled[page] = 1

    def begin(self, row: DraftRow) -> None:
        """See LaneDrafter: the prompt is computed when a draft is first wanted, as most routes may do without."""

    def enter(self, row: DraftRow, most: int) -> Entry | None:
        """See LaneDrafter."""
        from specproxy.drafters.lanes import Entry  # needs Triton, which comes with a GPU

        done, tokens = self._done(row), row.tokens
        if len(tokens) - len(done) > most:
            while len(done) < len(tokens) - 1:
                self._forward([(row, tokens[len(done) : min(len(done) + CATCH_UP_ROWS, len(tokens) - 1)])])
        self.leave(row, len(done))
        return Entry(len(tokens) - len(done))

    def form(self, levels: int, nodes: int, width: int) -> Form:
        """See LaneDrafter."""
        return chain(min(levels, nodes))

    def draft(self, lanes: Lanes, form: Form) -> Tensor:
        """See LaneDrafter."""
        model, kv, group = self._model, self._kv, query_group(self._model)
        entries = lanes.entries(group)
        rows = [lanes.rows(run_of(ahead, 1), group) for ahead in range(1, form.depth)]
        tokens = [lanes.pick(self._run(lanes, entries), 1, coupled=self._coupled)[:, 0, 0]]
        for ahead, (positions, plan) in enumerate(rows, start=2):
            logits, _ = model.forward(tokens[-1], positions, plan, kv, None)
            tokens.append(lanes.pick(logits, ahead, coupled=self._coupled)[:, 0, 0])
        return torch.stack(tokens, 1)

    def take_in(self, lanes: Lanes) -> None:
        """See LaneDrafter."""
        self._run(lanes, lanes.entries(query_group(self._model)))

    def _run(self, lanes: Lanes, entries: LaneRows) -> Tensor:
        """The recent tokens of every lane, computed; logits [L, V] behind each lane's last one."""
        logits, _ = self._model.forward(lanes.tokens, entries.positions, entries.plan, self._kv, lanes.newest_rows)
        return logits

    def leave(self, row: DraftRow, taken: int) -> None:
        """See LaneDrafter."""
        row.state = _Progress(list(row.tokens[:taken]), taken)
        row.seen = taken
        self._mark(row, taken)

    def _forward(self, work: Sequence[tuple[DraftRow, Sequence[int]]]) -> Tensor:
        """Feed each row's tokens behind what it has computed; logits [R, V] of the last one of each row."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        tables: list[Sequence[int]] = []
        spans, last, size = [], [], self._kv.page_size
        for row, tokens in work:
            progress = _progress(row)
            start, end = len(progress.tokens), len(progress.tokens) + len(tokens)
            spans.append(Span(len(ids), len(tokens), start, row.pages))
            ids += tokens
            positions += range(start, end)
            slots += [row.pages[p // size] * size + p % size for p in range(start, end)]
            tables += [row.pages] * len(tokens)
            last.append(len(ids) - 1)
            progress.tokens += tokens
        if self._compiled is not None and len(ids) <= self._compiled.max_rows:
            logits = self._compiled(ids, positions, slots, tables)
            return logits if len(last) == len(ids) else logits[last]
        missing = few_widths(len(ids)) - len(ids)
        ids += [0] * missing
        positions += [0] * missing
        slots += [self._kv.trash_slot] * missing
        device = self._model.spec.device
        group = query_group(self._model)
        plan = plan_attention(spans, torch.tensor(slots, device=device), self._kv, exact=False, group=group)
        rows = None if len(last) == len(ids) else torch.tensor(last, device=device)
        logits, _ = self._model.forward(
            torch.tensor(ids, device=device), torch.tensor(positions, device=device), plan, self._kv, rows
        )
        return logits

    def commit(self, ctx: DraftContext) -> None:
        """Learn how far margins can be trusted. How much of its KV still holds the next proposal finds out itself."""
        self._grower.commit(ctx)

    def release(self, seq_id: str) -> None:
        """Little is kept outside the row and the pages."""
        self._grower.forget(seq_id)


def _progress(row: DraftRow) -> _Progress:
    if not isinstance(row.state, _Progress):
        raise TypeError(f"row {row.seq_id} has another drafter's state")
    return row.state


def load(name: str, options: Options, host: Host) -> DraftModel:
    """The loader of type ``draft_model``. Raises ModelLoadError where tokenizers differ."""
    chosen = read_options(DraftModelOptions, name, "draft_model", options)
    model, folder = load_model(chosen.path, "draft", dtype=chosen.dtype, device=host.device, grow=chosen.grow)
    spec = model.spec
    if tokenizer_hash(folder) != host.tokenizer:
        raise ModelLoadError(
            f"drafters.{name}: {chosen.path} has another tokenizer than the target; a draft model must share the "
            "target's vocabulary, id by id"
        )
    kv = KVBuffers.allocate(spec.layers, host.num_pages, host.page_size, spec.dtype, spec.device)
    compiled, native = None, None
    if chosen.compile == "auto":
        native = native_model(model, host.progress)
    if chosen.compile == "auto" and native is None and not chosen.grow:
        compiled = compiled_step(chosen.path, chosen.dtype, model, kv, host.progress)
    lanes = host.model.spec.path_kind == "device"
    return DraftModel(name, native or model, kv, compiled, host, chosen.max_k, chosen.draw, lanes=lanes)
