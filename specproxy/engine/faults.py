"""Faults put in on purpose, so that tests and the bench can show that audits and the gate find them. Never for serving.

They are wanted by an environment variable whose name no setting, flag or file leads to, and a process that has them
says so in its output and in the numerics of /ready.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_in

from msgspec.structs import replace
from torch import Tensor

from specproxy.engine.assemble import Assembled
from specproxy.engine.runner import Runner
from specproxy.engine.step import Step
from specproxy.errors import ConfigError
from specproxy.kernels.attention import Span

VARIABLE = "UNSAFE_TEST_FAULTS"
"""``KIND:N``, a kind of ``KINDS``."""

KINDS = {
    "flip_token": "one accepted token in {} is flipped",
    "kernel": "in one row of logits in {} the head's product stores a tile one place off",
    "cache": "in one decode step in {} a page of keys and values is cleared while it is read",
    "mask": "in one draft in {} no token sees the one before it",
}
"""What each does. The first and the last touch drafts alone, the others plain decoding too."""

TILE = slice(256, 320)
"""Ids that a wrong product spoils: as many as one tile of it has, from where a byte-level vocabulary's words begin."""

_MOST_NODES = 64
"""Nodes of a tree, the root included, that ancestor words have room for."""


@dataclass(frozen=True)
class Wanted:
    """A fault of ``kind`` at every ``every``th opportunity; with a ``seed`` at random, as often on average."""

    kind: str
    every: int
    seed: int | None = None

    @property
    def text(self) -> str:
        """For people."""
        return KINDS[self.kind].format(self.every)


class Turns:
    """Says at which opportunities a fault strikes."""

    def __init__(self, every: int, seed: int | None = None) -> None:
        self._every = every
        self._seen = 0
        self._random = None if seed is None else random.Random(seed)
        self.struck = 0

    def strikes(self) -> bool:
        """Whether it does now; to be asked once for each opportunity."""
        self._seen += 1
        here = self._seen % self._every == 0 if self._random is None else self._random.random() * self._every < 1.0
        self.struck += here
        return here


class Faults:
    """Spoils the tokens that a step commits."""

    def __init__(self, turns: Turns, vocab_size: int) -> None:
        self._turns = turns
        self._vocab = vocab_size

    def flip(self, tokens: Sequence[int]) -> list[int]:
        """The same tokens, of which an accepted one may be its neighbour; the last one is not drafted but sampled, so
        plain decoding is never touched."""
        flipped = [(token + 1) % self._vocab if self._turns.strikes() else token for token in tokens[:-1]]
        return [*flipped, *tokens[-1:]]


class SpoiltRunner(Runner):
    """``right``, whose steps go wrong in the way that ``kind`` says."""

    def __init__(self, right: Runner, kind: str, turns: Turns) -> None:
        graphs = right._graphs  # noqa: SLF001 - the same class: what it captured serves this one too
        super().__init__(right.model, right.kv, right.rules, right.threads, graphs)
        self._kind = kind
        self._turns = turns

    def run(self, step: Step, hidden: Sequence[int] = ()) -> tuple[Tensor, list[Tensor]]:
        """See Runner.run."""
        if step.kind == "decode" and self._kind == "cache":
            self._clear_a_page(step)
        if step.kind == "decode" and self._kind == "mask":
            step = replace_in(step, spans=[self._blinded(span) for span in step.spans])
        logits, taps = super().run(step, hidden)
        return (self._misplaced(logits) if self._kind == "kernel" else logits), taps

    def _misplaced(self, logits: Tensor) -> Tensor:
        """Logits [N, V] with a tile of ids stored one place off, in rows where the fault strikes."""
        rows = [i for i in range(len(logits)) if self._turns.strikes()]
        wrong = logits.clone()
        wrong[rows, TILE] = logits[rows, TILE].roll(1, -1)
        return wrong

    def _clear_a_page(self, step: Step) -> None:
        """As if a page in the middle of a sequence's context had been given to somebody else."""
        full = [(span.table, span.context // self.kv.page_size) for span in step.spans]
        found = [table[pages // 2] for table, pages in full if pages]
        if found and self._turns.strikes():
            self.kv.zero_page(found[0])

    def _blinded(self, span: Span) -> Span:
        """A draft's span with a mask that hides from each node its parent."""
        if not 2 <= span.count <= _MOST_NODES or span.before or not self._turns.strikes():
            return span
        words = span.words or [(2 << i) - 1 for i in range(span.count)]
        return replace_in(span, words=[word & ~_parent(word, i) for i, word in enumerate(words)])


def _parent(word: int, node: int) -> int:
    """The bit of a node's parent: the last one before its own; 0 for the root."""
    before = word & ((1 << node) - 1)
    return 1 << (before.bit_length() - 1) if before else 0


def inject_wanted(assembled: Assembled, env: Mapping[str, str], tell: Callable[[str], None]) -> None:
    """Put in what ``env`` asks for. Raises ConfigError where that is no fault."""
    wanted = env.get(VARIABLE)
    if not wanted:
        return
    kind, _, number = wanted.partition(":")
    if kind not in KINDS or not number.isdecimal() or int(number) < 1:
        forms = ", ".join(f"{name}:N" for name in KINDS)
        raise ConfigError(f"{VARIABLE}: expected one of {forms} with N from 1 on, got {wanted}")
    inject(assembled, Wanted(kind, int(number)))
    tell(f"{VARIABLE}: {assembled.numerics.detail}")


@dataclass(frozen=True)
class Injection:
    """A fault that is in an engine. ``turns`` counts how often it struck; ``undo`` takes it out, and forgets pages that
    it may have spoilt."""

    turns: Turns
    undo: Callable[[], None]


def inject(assembled: Assembled, wanted: Wanted) -> Injection:
    """Put a fault in. One of a step takes whole rounds on a device out of use, whose steps no runner sees."""
    engine, turns = assembled.engine, Turns(wanted.every, wanted.seed)
    runner, flying, faults, numerics = engine.runner, engine.flying, engine.answers.faults, assembled.numerics

    def undo() -> None:
        engine.runner, engine.flying, engine.answers.faults = runner, flying, faults
        assembled.numerics = numerics
        engine.scheduler.pool.forget_idle()

    if wanted.kind == "flip_token":
        engine.answers.faults = Faults(turns, assembled.host.vocab_size)
    else:
        engine.land()
        engine.flying, engine.runner = None, SpoiltRunner(runner, wanted.kind, turns)
    detail = f"FAULTS ON: {wanted.text}"
    assembled.numerics = replace(numerics, detail=f"{numerics.detail}; {detail}" if numerics.detail else detail)
    return Injection(turns, undo)
