"""The house target's drafters, driven in lanes as rounds drive them, and beside them as the engine does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from specproxy.drafters.base import ROOT, DraftBatch, DraftContext, Drafter, DraftRow
from specproxy.drafters.draft_model import DraftModel
from specproxy.drafters.forms import Form
from specproxy.drafters.growth import Ask
from specproxy.drafters.head import HeadDrafter
from specproxy.drafters.head_kv import HeadPages
from specproxy.drafters.lanes import Entry, LaneDrafter, Lanes, LaneShape
from specproxy.drafters.layer_skip import LayerSkipDrafter
from specproxy.drafters.medusa import MedusaDrafter
from specproxy.heads.base import Head, ParallelHead, RecurrentHead, TargetFacts
from specproxy.heads.loading import read_head
from specproxy.kernels.attention import Span
from specproxy.kernels.paged import KVBuffers
from specproxy.kernels.plan import plan_attention
from specproxy.models.base import StepModel
from specproxy.models.device import DeviceModel
from specproxy.models.fused import FusedModel
from specproxy.models.loading import find_model, load_model
from specproxy.sampling.sampler import Row, Sampler, propose_rows
from specproxy.vocabulary import SamplingParams
from tests.support.prompts import mini_prompts

PAGE, PAGES = 16, 64
VOCAB = 8000
TEXT = 96


@dataclass(frozen=True)
class Place:
    """Where everything is, in which type."""

    device: str = "cpu"
    dtype: str = "float32"


class House:
    """The house target on the GPU's path, wherever it is, and texts with its states."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.target = on_device_path("target", place)
        long = [prompt["ids"] for prompt in mini_prompts() if len(prompt["ids"]) >= TEXT]
        self.texts = [list(ids[-TEXT:]) for ids in long[:3]]

    @property
    def facts(self) -> TargetFacts:
        """What heads share with it."""
        model, spec = self.target, self.target.spec
        return TargetFacts(
            embed=model.embed,
            head=model.head,
            config=model.config,
            folder=find_model("house", "target"),
            hidden_size=spec.hidden_size,
            num_layers=len(spec.layers),
            vocab_size=spec.vocab_size,
            dtype=spec.dtype,
            device=spec.device,
        )

    @cached_property
    def heads(self) -> dict[str, Head]:
        """By kind."""
        folders = {"eagle3": "eagle3", "medusa": "medusa", "mtp": "target"}
        return {kind: read_head(str(find_model("house", role)), self.facts).head for kind, role in folders.items()}

    @cached_property
    def draft_model(self) -> StepModel:
        """The house draft model."""
        return on_device_path("draft", self.place)

    def run(self, kv: KVBuffers, pages: Sequence[int], tokens: Sequence[int], hidden: Sequence[int]) -> Tensor:
        """The target over a text from its beginning: states [T, C * D]."""
        device = self.place.device
        slots = torch.tensor([pages[p // PAGE] * PAGE + p % PAGE for p in range(len(tokens))], device=device)
        plan = plan_attention([Span(0, len(tokens), 0, pages)], slots, kv)
        ids = torch.tensor(tokens, device=device)
        positions = torch.arange(len(tokens), device=device)
        _, taps = self.target.forward(ids, positions, plan, kv, positions[:1], hidden)
        return torch.cat(taps, 1) if taps else torch.zeros(len(tokens), 0, device=device)

    def make(self, kind: str, kv: KVBuffers) -> Drafter:
        """A drafter of that kind. ``kv``: the target's."""

        def own(layers: Any) -> KVBuffers:
            """Full of noise where nothing is written, so that it shows if somebody reads there."""
            kv = KVBuffers.allocate(layers, PAGES, PAGE, self.target.spec.dtype, self.place.device)
            for buffer in kv.layers:
                buffer[:, PAGE:].normal_(generator=torch.Generator(self.place.device).manual_seed(1))
            return kv

        def listen(listener: object) -> None:
            """No page changes hands here."""

        if kind == "layer_skip":
            return LayerSkipDrafter(kind, cast(FusedModel, self.target), kv, 3, 8)
        if kind == "draft_model":
            host: Any = SimpleNamespace(num_pages=PAGES, on_allocate=listen)
            return DraftModel(kind, self.draft_model, own(self.draft_model.spec.layers), None, host, 8, lanes=True)
        if kind == "medusa":
            return MedusaDrafter(kind, cast(ParallelHead, self.heads[kind]), 8, lanes=True)
        head = cast(RecurrentHead, self.heads[kind])
        return HeadDrafter(kind, head, HeadPages(own(head.spec.layers), PAGES, listen), VOCAB, 8, lanes=True)


@lru_cache(maxsize=2)
def house(place: Place) -> House:
    """Loaded once."""
    return House(place)


def on_device_path(role: str, place: Place) -> DeviceModel:
    """A house model in the layer loop of the GPU."""
    model, _ = load_model("house", role, dtype=place.dtype, device=place.device)
    return model if isinstance(model, DeviceModel) else DeviceModel(cast(Any, model).stock, model.spec)


@dataclass(frozen=True)
class Start:
    """A sequence: ``known`` tokens of text ``text`` are committed, states are there from position ``since`` on."""

    text: int
    known: int
    since: int = 0


class Life:
    """One drafter, and sequences that live with it."""

    def __init__(self, home: House, kind: str, starts: Sequence[Start], temperature: float = 0.0) -> None:
        self.home = home
        spec, place = home.target.spec, home.place
        self.kv = KVBuffers.allocate(spec.layers, PAGES, PAGE, spec.dtype, place.device)
        self.drafter = home.make(kind, self.kv)
        self.texts = [home.texts[start.text] for start in starts]
        self.states: list[Tensor] = []
        self.rows: list[DraftRow] = []
        for number, start in enumerate(starts):
            pages, text = range(2 + 8 * number, 10 + 8 * number), home.texts[start.text]
            self.states.append(home.run(self.kv, pages, text, self.drafter.needs.hidden))
            params = SamplingParams(temperature=temperature)
            sampler = Sampler(params, 77 + number, 0, text[: start.known], VOCAB, (), torch.device(place.device))
            row = DraftRow(f"r{number}", text[: start.known], start.known, 0, "", sampler, pages=pages)
            row.hidden.append(start.since, self.states[number][start.since : start.known - 1])
            self.rows.append(row)

    def propose(self, k: int) -> list[list[int]]:
        """Chains of ``k`` for all rows, as the engine asks for them."""
        for row in self.rows:
            row.k, row.room, row.width = k, k, 1
        out = DraftBatch.allocate(len(self.rows), k)
        self.drafter.propose(DraftContext(self.rows), out)
        return [out.tokens[i, : out.n[i]].tolist() for i in range(len(self.rows))]

    def scores(self) -> Tensor:
        """What the drafter thinks of the next tokens [R, V]."""
        return cast(HeadDrafter, self.drafter).catch_up(self.rows)

    def tree(self, form: Form) -> list[list[int]]:
        """Tokens of the form's nodes for every row, drafted level by level as the engine asks for them."""
        drafter = cast(HeadDrafter, self.drafter)
        logits, parents = drafter.catch_up(self.rows), [(row, ROOT) for row in self.rows]
        tokens: dict[tuple[str, int], int] = {}
        ran = {(row.seq_id, ROOT): ROOT for row in self.rows}
        for level in range(form.depth):
            paths = [
                [tokens[row.seq_id, one] for one in form.paths[node]] if node >= 0 else [] for row, node in parents
            ]
            asked = [
                Row(row.sampler, path, len(row.tokens) + level) for (row, _), path in zip(parents, paths, strict=True)
            ]
            drawn = propose_rows(logits, asked, form.width).tokens
            for (row, parent), best in zip(parents, drawn, strict=True):
                for node, (above, rank, _) in enumerate(form.nodes):
                    if above == parent:
                        tokens[row.seq_id, node] = best[rank]
            if level == form.depth - 1:
                break
            parents = [(row, node) for row in self.rows for node in form.inner[level]]
            asks = []
            for row, node in parents:
                above = ran[row.seq_id, form.parents[node]]
                asks.append(Ask(row, tokens[row.seq_id, node], level + 1, above))
                ran[row.seq_id, node] = sum(seq == row.seq_id for seq, _ in ran) - 1
            logits = drafter.extend(asks)
        return [[tokens[row.seq_id, node] for node in range(len(form.parents))] for row in self.rows]

    def commit(self, number: int, count: int, *, captured: bool = True) -> None:
        """The text goes on by ``count`` tokens; the states of that step wait in the row where they are ``captured``."""
        row = self.rows[number]
        known = len(row.tokens)
        row.sampler.advance(self.texts[number][known : known + count])
        cast(list[int], row.tokens).extend(self.texts[number][known : known + count])
        if captured:
            self.remember(number, known - 1)

    def remember(self, number: int, start: int) -> None:
        """The target's states from position ``start`` on wait in the row."""
        row = self.rows[number]
        row.hidden.append(start, self.states[number][start : len(row.tokens) - 1])


class Rounds:
    """A life whose rows stand in lanes. ``places``: which row stands in which lane, ``None`` for a dead one."""

    def __init__(self, life: Life, places: Sequence[int | None], most: int, k: int) -> None:
        self.life = life
        self.places = places
        self.k = k
        target = life.home.target.spec
        shape = LaneShape(len(places), most, life.states[0].shape[1], 8)
        self.lanes = Lanes(shape, life.kv, target.dtype, life.home.place.device)
        self.drafter = cast(LaneDrafter, life.drafter)
        for lane, number in enumerate(places):
            if number is not None:
                self._enter(lane, number, most)

    def _enter(self, lane: int, number: int, most: int) -> None:
        row, numbers = self.life.rows[number], self.lanes.numbers
        entry = self.drafter.enter(row, most)
        assert entry is not None
        assert 1 <= entry.fresh <= most
        sampler = row.sampler
        numbers.live[lane], numbers.limit[lane], numbers.first[lane] = 1, self.k, entry.first
        numbers.tables[lane, : len(row.pages)] = torch.tensor(row.pages, dtype=torch.int32)
        numbers.temperature[lane], numbers.top_p[lane] = sampler.cut.temperature, 1.0
        numbers.seed[lane], numbers.choice[lane], numbers.vocab[lane] = sampler.seed, sampler.choice, VOCAB
        self._commit(lane, row, entry)

    def _commit(self, lane: int, row: DraftRow, entry: Entry) -> None:
        """What a round leaves behind: the last ``fresh`` tokens, and the states before theirs."""
        numbers, fresh = self.lanes.numbers, entry.fresh
        numbers.known[lane], numbers.fresh[lane] = len(row.tokens), fresh
        numbers.recent[lane] = -1
        numbers.recent[lane, :fresh] = torch.tensor(row.tokens[-fresh:])
        if entry.states is not None:
            self.lanes.states[lane, :fresh] = entry.states

    def draft(self, form: Form | None = None) -> list[list[int]]:
        """Tokens of a form's nodes, a chain's where none is given, of the rows in the rows' order."""
        self.lanes.begin()
        chains = self.drafter.draft(self.lanes, form or self.drafter.form(self.k, self.k, 1)).tolist()
        order = [lane for lane, _ in sorted(self._live(), key=lambda pair: pair[1])]
        return [chains[lane] for lane in order]

    def commit(self, counts: Sequence[int]) -> None:
        """A round ends: row i's text goes on by ``counts[i]`` tokens."""
        for lane, number in self._live():
            row, count = self.life.rows[number], counts[number]
            self.life.commit(number, count, captured=False)
            end = len(row.tokens) - 1
            self._commit(lane, row, Entry(count, self.life.states[number][end - count : end]))

    def leave(self) -> None:
        """All rows leave; the states of the last round wait in them again."""
        for lane, number in self._live():
            row = self.life.rows[number]
            taken = int(self.lanes.numbers.known[lane] - self.lanes.numbers.fresh[lane])
            self.drafter.leave(row, taken)
            self.life.remember(number, taken - 1)

    def _live(self) -> list[tuple[int, int]]:
        return [(lane, number) for lane, number in enumerate(self.places) if number is not None]


def both(
    home: House, kind: str, starts: Sequence[Start], places: Sequence[int | None], temperature: float, steps: int = 3
) -> None:
    """Drafts in lanes equal those beside them: at entry, in later rounds, behind the lanes. Raises AssertionError."""
    plain, other = (Life(home, kind, starts, temperature) for _ in range(2))
    k, most = (3, 5)
    rounds = Rounds(other, places, most, k)
    for step in range(steps):
        assert rounds.draft() == plain.propose(k), f"step {step}"
        counts = [1 + (step + 2 * number) % (k + 1) for number in range(len(starts))]
        rounds.commit(counts)
        for number, count in enumerate(counts):
            plain.commit(number, count)
    rounds.leave()
    torch.testing.assert_close(other.scores(), plain.scores(), atol=1e-3, rtol=1e-3)
    for number in range(len(starts)):
        plain.commit(number, 2)
        other.commit(number, 2)
    assert other.propose(k) == plain.propose(k), "behind the lanes"
