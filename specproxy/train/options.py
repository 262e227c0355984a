"""What a training run can be told: the command line's options by their names, checked there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line's, by its names. ``steps``: 0 trains nothing. ``None``: the recipe's own default."""

    recipe: Literal["eagle3", "medusa", "draft"]
    model: str
    out: Path
    cache: Path | None = None
    data: list[Path]
    held_out: list[Path]
    device: str = "auto"
    seed: int = 0
    init: Path | None = None
    limit: int | None = None
    greedy: float = 0.5
    temperatures: tuple[float, ...] = (0.7, 1.0)
    answers: int = 1
    max_answer: int = 256
    max_prompt: int = 768
    prefix: int = 128
    batch_tokens: int | None = None
    epochs: float = 3.0
    steps: int | None = None
    length: int = 1024
    rows: int = 8
    lr: float = 5e-4
    save_every: int = 500
    guesses: int | None = None
    draft_vocab: int = 2048
    hidden_states: tuple[int, ...] | None = None
    blocks: int = 1
    layout: Literal["shared", "full"] = "shared"
    layers: int = 3
    hidden_size: int = 192
    heads: int | None = None
    kv_heads: int | None = None
    intermediate_size: int | None = None
    licence: str = ""
