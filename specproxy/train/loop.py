"""The training loop: AdamW, warm-up and cosine, clipped gradients, bf16 products on a GPU over float32 weights.

A run can stop and go on: what it needs is written to ``checkpoint.pt`` (weights, optimiser, generator, step), and the
order of the data is a function of seed and step. On a CPU a run that was interrupted ends with the same bits as one
that was not.
"""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from specproxy.errors import StartError
from specproxy.train.packing import Batch, Document, batches
from specproxy.train.recipe import Outcome, Recipe, Tally, mixed_precision

CHECKPOINT = "checkpoint.pt"
MOMENTUM = 0.9
"""Of the running acceptance that progress shows."""


@dataclass(frozen=True)
class Schedule:
    """``steps`` of ``rows`` rows of ``length`` tokens. ``warmup``: share of the steps. ``save_every``: steps between
    checkpoints."""

    steps: int
    rows: int = 16
    length: int = 1024
    lr: float = 5e-4
    warmup: float = 0.04
    floor: float = 0.02
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    save_every: int = 500

    def factor(self, step: int) -> float:
        """Of the learning rate at ``step``: linear up, then half a cosine down to ``floor``."""
        start = max(1, round(self.warmup * self.steps))
        if step < start:
            return (step + 1) / start
        gone = (step - start) / max(1, self.steps - start)
        return self.floor + (1 - self.floor) * 0.5 * (1 + math.cos(math.pi * gone))


@dataclass(frozen=True)
class Progress:
    """After a step: ``loss`` of it, ``acceptance`` (conditional, running) by position."""

    step: int
    loss: float
    acceptance: tuple[float, ...]


@dataclass(frozen=True)
class Trained:
    """``losses`` of the steps that this call made; ``seconds`` they took; ``finished``: the schedule is done."""

    losses: list[float]
    acceptance: tuple[float, ...]
    seconds: float
    finished: bool


def train(
    recipe: Recipe,
    documents: Sequence[Document],
    schedule: Schedule,
    folder: Path,
    *,
    device: str,
    report: Callable[[Progress], None] = lambda _: None,
    stop_after: int | None = None,
    look_every: int = 1,
) -> Trained:
    """Train to the schedule's end, from the checkpoint in ``folder`` if there is one of the same schedule.

    ``stop_after``: steps of this call at most. ``look_every``: steps between looks at the loss; each look waits for the
    device. Raises StartError where the checkpoint is another run's, or there is nothing to learn.
    """
    optimizer = torch.optim.AdamW(
        recipe.module.parameters(), lr=schedule.lr, betas=(0.9, 0.95), weight_decay=schedule.weight_decay
    )
    first = _resume(recipe, optimizer, schedule, folder / CHECKPOINT)
    last = schedule.steps if stop_after is None else min(schedule.steps, first + stop_after)
    if not any(1 <= document.start < min(len(document.ids), schedule.length) for document in documents):
        raise StartError("no answer begins within the row length; expected longer rows or shorter prompts")
    data = batches(documents, length=schedule.length, rows=schedule.rows, seed=schedule.seed, start=first)
    recipe.module.train()
    began, losses, running = time.perf_counter(), list[float](), torch.zeros(recipe.steps)
    done = first
    try:
        for step in range(first, last):
            outcome = _learn(recipe, next(data).to(device), optimizer, schedule, step)
            done = step + 1
            if done % look_every == 0 or done == last:
                losses.append(float(outcome.loss.detach()))
                rates = torch.tensor(Tally.of(outcome.guesses).conditional)
                running = rates if len(losses) == 1 else MOMENTUM * running + (1 - MOMENTUM) * rates
                report(Progress(done, losses[-1], tuple(running.tolist())))
            if done % schedule.save_every == 0:
                _save(recipe, optimizer, schedule, done, folder / CHECKPOINT)
    except KeyboardInterrupt:
        _save(recipe, optimizer, schedule, done, folder / CHECKPOINT)
        raise
    if last > first:
        _save(recipe, optimizer, schedule, last, folder / CHECKPOINT)
    recipe.module.eval()
    return Trained(losses, tuple(running.tolist()), time.perf_counter() - began, last == schedule.steps)


def _learn(recipe: Recipe, batch: Batch, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int) -> Outcome:
    """One step."""
    for group in optimizer.param_groups:
        group["lr"] = schedule.lr * schedule.factor(step)
    # An engine in the same process turns gradients off for good.
    with torch.enable_grad(), mixed_precision(batch.ids.device.type):
        outcome = recipe.learn(batch)
    optimizer.zero_grad(set_to_none=True)
    outcome.loss.backward()
    torch.nn.utils.clip_grad_norm_(recipe.module.parameters(), schedule.clip)
    optimizer.step()
    return outcome


def _save(recipe: Recipe, optimizer: torch.optim.Optimizer, schedule: Schedule, step: int, file: Path) -> None:
    """Beside, then renamed: an interruption leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "recipe": recipe.name,
        "facts": recipe.facts(),
        "schedule": asdict(schedule),
        "step": step,
        "module": recipe.module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "generator": torch.get_rng_state(),
    }
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(file)


def _resume(recipe: Recipe, optimizer: torch.optim.Optimizer, schedule: Schedule, file: Path) -> int:
    """The step to go on with; 0 where there is no checkpoint."""
    if not file.is_file():
        return 0
    try:
        state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
        raise StartError(f"{file}: cannot be read as a checkpoint; delete it to start anew") from None
    if (state["recipe"], state["schedule"]) != (recipe.name, asdict(schedule)) or not _same(
        state["facts"], recipe.facts()
    ):
        raise StartError(f"{file}: of a run with other options; delete it, or choose another folder")
    recipe.module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["generator"])
    return int(state["step"])


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    """Equal as JSON would have them: tuples and lists are the same."""
    return repr(ours).replace("(", "[").replace(")", "]") == repr(theirs).replace("(", "[").replace(")", "]")
