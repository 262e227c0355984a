"""Captures the usual steps of a target on a GPU before anybody waits for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from specproxy.engine.runner import GRAPHED_ROWS, Rules
from specproxy.engine.step_shapes import StepShape, chunk_shapes, short_reach, usual_shapes
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import StepModel, query_group

if TYPE_CHECKING:
    from specproxy.engine.graphs import StepGraphs

SECONDS = 60.0
"""Of a start that captures may take for each set of hidden states; steps left out are captured when they occur."""


class Captures:
    """The graphs of a target, if it has any (``graphs``), and which of them its steps usually need."""

    def __init__(self, model: StepModel, kv: KVBuffers, rules: Rules, max_sequences: int) -> None:
        self.graphs: StepGraphs | None = None
        self._shape = (query_group(model), short_reach(model.spec.max_len, kv.page_size), max_sequences)
        self._rules = rules
        self._alone = model.spec.ranks == 1
        self._done: set[tuple[int, ...]] = set()
        if model.spec.captured:
            from specproxy.engine.graphs import StepGraphs

            self.graphs = StepGraphs(model, kv)

    @property
    def bytes(self) -> int:
        """Memory that captures took."""
        return 0 if self.graphs is None else self.graphs.bytes

    def capture(self, hidden: Sequence[int], progress: Callable[[str], None]) -> None:
        """Capture the usual steps that give the states ``hidden``, in any order and however often named. Where several
        processes share the target, each captures a step when all run it first: none could do it alone."""
        states = tuple(sorted(set(hidden)))
        if self.graphs is None or not self._alone or states in self._done:
            return
        self._done.add(states)
        before, held = len(self.graphs), self.graphs.bytes
        left = self.graphs.capture(step_shapes(self._rules, states, *self._shape), SECONDS)
        count, taken = len(self.graphs) - before, self.graphs.bytes - held
        rest = f", {left} more when they occur" if left else ""
        progress(f"captured {count} steps for states {list(states)}, {taken / 2**20:.0f} MB{rest}")


def step_shapes(rules: Rules, hidden: tuple[int, ...], group: int, reach: int, max_sequences: int) -> list[StepShape]:
    """Shapes of all steps that ``rules`` let an ordinary run have. ``group``, ``reach``: see usual_shapes. Prompt
    chunks come first: no step is wider, or takes more scratch memory."""
    widths = {rules.width(rows) for rows in range(1, min(rules.max_rows, GRAPHED_ROWS) + 1)}
    chunks = chunk_shapes(rules.prefill_rows, rules.trim, rules.width(1), hidden, group, reach)
    decode = usual_shapes([width for width in widths if width <= GRAPHED_ROWS], hidden, group, reach, max_sequences)
    return [*chunks, *decode]
