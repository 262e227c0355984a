"""One training run from end to end: answers, training, files, report."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from specproxy.train.card import TRAINING, write_card
from specproxy.train.data import Corpus, Mixture, build_corpus
from specproxy.train.draft import DraftOptions, DraftRecipe
from specproxy.train.eagle3 import Eagle3Recipe
from specproxy.train.eagle3_head import Eagle3Options
from specproxy.train.loop import Progress, Schedule, Trained, train
from specproxy.train.medusa import MedusaOptions, MedusaRecipe
from specproxy.train.options import Options
from specproxy.train.packing import count_rows
from specproxy.train.recipe import Recipe
from specproxy.train.records import Limits
from specproxy.train.report import Evaluation, evaluate
from specproxy.train.target import FrozenTarget

CPU_BATCH_TOKENS = 8192
GPU_BATCH_TOKENS = 1 << 21
"""Tokens answered at a time, at most."""

KV_SHARE = 6
"""Free memory of a GPU over that of the keys and values: dropping rows copies them, and prompts want room too."""

LOOK_EVERY = 10
"""Steps between looks at the loss on a GPU."""


class Watcher(Protocol):
    """Is told how far a run is."""

    def phase(self, name: str, done: int, total: int) -> None:
        """``done`` of ``total`` of a phase."""
        ...

    def step(self, step: Progress, total: int) -> None:
        """One training step."""
        ...


@dataclass(frozen=True)
class Result:
    """``training``: what ``training.json`` says. ``evaluation``: where there were held-out prompts."""

    training: dict[str, Any]
    evaluation: Evaluation | None


def run(options: Options, watcher: Watcher) -> Result:
    """Do all of it; files are written before the report is made, so that a slow report costs nothing. Raises
    StartError."""
    torch.manual_seed(options.seed)
    # Decoding took 80 ms a token on one H100 with cuDNN's attention, which seems to plan anew for every length.
    torch.backends.cuda.enable_cudnn_sdp(False)
    target = FrozenTarget.load(options.model, options.device)
    corpus = _corpus(options, target, options.data, "answering prompts", watcher) if options.data else Corpus([])
    recipe = make_recipe(options, target, corpus)
    schedule = make_schedule(options, corpus)
    trained = Trained([], (), 0.0, True)
    if schedule.steps:
        trained = train(
            recipe,
            corpus.documents,
            schedule,
            options.out,
            device=target.device,
            report=lambda step: watcher.step(step, schedule.steps),
            look_every=1 if target.device == "cpu" else LOOK_EVERY,
        )
    recipe.save(options.out)
    training = _known(options) or _training(options, target, corpus, recipe, schedule, trained)
    write_card(options.out, training)
    evaluation = None
    if options.held_out:
        evaluation = report(options, target, recipe, watcher)
        training["evaluation"] = evaluation.facts() | {"machine": machine(target.device)}
        write_card(options.out, training)
    return Result(training, evaluation)


def report(options: Options, target: FrozenTarget, recipe: Recipe, watcher: Watcher) -> Evaluation:
    """Acceptance on greedy answers to the held-out prompts."""
    corpus = _corpus(options, target, options.held_out, "answering held-out prompts", watcher, greedy=True)
    return evaluate(
        recipe,
        target,
        corpus.documents,
        length=options.length,
        rows=options.rows,
        done=lambda done, total: watcher.phase("evaluating", done, total),
    )


def make_recipe(options: Options, target: FrozenTarget, corpus: Corpus) -> Recipe:
    """A new one, or the one in ``options.init``."""
    if options.recipe == "eagle3":
        shape = Eagle3Options(
            draft_vocab=options.draft_vocab,
            hidden=options.hidden_states,
            steps=options.guesses or Eagle3Options.steps,
            intermediate_size=options.intermediate_size,
            heads=options.heads,
            kv_heads=options.kv_heads,
            window=options.length,
        )
        if options.init:
            return Eagle3Recipe.load(target, options.init, shape)
        return Eagle3Recipe.start(target, corpus.documents, shape)
    if options.recipe == "medusa":
        if options.init:
            return MedusaRecipe.load(target, options.init)
        return MedusaRecipe(
            target, MedusaOptions(options.guesses or MedusaOptions.heads, options.blocks, options.layout)
        )
    sizes = DraftOptions(
        hidden_size=options.hidden_size,
        layers=options.layers,
        heads=options.heads or DraftOptions.heads,
        kv_heads=options.kv_heads or DraftOptions.kv_heads,
        intermediate_size=options.intermediate_size or DraftOptions.intermediate_size,
        steps=options.guesses or DraftOptions.steps,
    )
    return DraftRecipe.load(target, options.init, sizes) if options.init else DraftRecipe.start(target, sizes)


def make_schedule(options: Options, corpus: Corpus) -> Schedule:
    """Steps as given, or as many as the epochs have."""
    steps = options.steps
    if steps is None:
        steps = max(1, round(options.epochs * count_rows(corpus.documents, options.length) / options.rows))
    return Schedule(
        steps=steps,
        rows=options.rows,
        length=options.length,
        lr=options.lr,
        seed=options.seed,
        save_every=options.save_every,
    )


def _corpus(
    options: Options, target: FrozenTarget, files: list[Path], phase: str, watcher: Watcher, *, greedy: bool = False
) -> Corpus:
    return build_corpus(
        target,
        files,
        options.cache or options.out,
        limits=Limits(options.max_prompt, options.prefix, options.limit),
        mixture=Mixture(
            greedy=1.0 if greedy else options.greedy,
            temperatures=() if greedy else options.temperatures,
            answers=1 if greedy else options.answers,
            max_new=options.max_answer,
            seed=options.seed,
        ),
        batch_tokens=options.batch_tokens or batch_tokens(target),
        progress=lambda done, total: watcher.phase(phase, done, total),
    )


def _known(options: Options) -> dict[str, Any] | None:
    """How the weights were trained, where this run trains nothing and their folder says so."""
    if options.steps != 0 or options.init is None or not (options.init / TRAINING).is_file():
        return None
    known: dict[str, Any] = json.loads((options.init / TRAINING).read_text("utf-8"))
    return known


def _training(
    options: Options, target: FrozenTarget, corpus: Corpus, recipe: Recipe, schedule: Schedule, trained: Trained
) -> dict[str, Any]:
    # As JSON has it: tuples are lists, so that what is returned equals what is read back.
    facts: dict[str, Any] = json.loads(
        json.dumps(
            {
                "recipe": recipe.name,
                "facts": recipe.facts(),
                "target": {"name": options.model, "fingerprint": target.fingerprint},
                "data": {
                    "documents": len(corpus.documents),
                    "trained_tokens": corpus.trained_tokens,
                    "sources": corpus.sources,
                },
                "schedule": asdict(schedule),
                "seconds": round(trained.seconds, 1),
                "machine": machine(target.device),
                "loss": trained.losses[-1:],
                "licence": options.licence,
            }
        )
    )
    return facts


def batch_tokens(target: FrozenTarget) -> int:
    """As many as the memory allows."""
    if target.device == "cpu":
        return CPU_BATCH_TOKENS
    config = target.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * target.model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info()
    return int(min(GPU_BATCH_TOKENS, free // (KV_SHARE * size)))


def machine(device: str) -> str:
    """What it was trained on, for the card."""
    if device == "cpu":
        return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
    return f"one {torch.cuda.get_device_name()}"
