"""What lies beside trained weights: ``training.json`` for programs, ``README.md`` for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specproxy.train.saving import write_json

TRAINING = "training.json"
TITLES = {"eagle3": "EAGLE-3 head", "medusa": "Medusa heads", "draft": "Draft model"}


def write_card(folder: Path, training: Mapping[str, Any]) -> None:
    """``training``: recipe, facts, target, data, schedule, machine and, if it was evaluated, evaluation."""
    write_json(folder / TRAINING, dict(training))
    (folder / "README.md").write_text(card(training), "utf-8")


def card(training: Mapping[str, Any]) -> str:
    """The card in Markdown."""
    data, schedule, target = training["data"], training["schedule"], training["target"]
    lines = [
        f"# {TITLES[training['recipe']]} for {target['name']}",
        "",
        f"Drafts for the target with fingerprint `{target['fingerprint']}`.",
        "",
        *[f"- {name.replace('_', ' ')}: {_words(value)}" for name, value in training["facts"].items()],
        "",
        "## Training",
        "",
        f"`specproxy train {training['recipe']}`: {data['documents']:,} answers that the target gave itself,",
        f"{data['trained_tokens']:,} tokens of them to be guessed; {schedule['steps']} steps of",
        f"{schedule['rows']} rows of {schedule['length']} tokens, {training['seconds']:.0f} seconds on",
        f"{training['machine']}.",
        "",
        "Prompts: " + ", ".join(f"{name} {count:,}" for name, count in data["sources"].items()) + ".",
        "",
        *([f"Licence: {training['licence']}.", ""] if training.get("licence") else []),
    ]
    if evaluation := training.get("evaluation"):
        lines += ["## Acceptance", "", *_acceptance(evaluation)]
    return "\n".join(lines)


def _words(value: object) -> str:
    return ", ".join(str(part) for part in value) if isinstance(value, list) else str(value)


def _acceptance(evaluation: Mapping[str, Any]) -> list[str]:
    sources: Mapping[str, Mapping[str, Any]] = evaluation["sources"]
    guesses = max(len(row["conditional"]) for row in sources.values())
    heads = ["prompts", *(str(i + 1) for i in range(guesses)), "tokens a round"]
    lines = [
        "Held-out prompts, greedy answers: how often each guess is the target's token where all before it were. The",
        f"last column is what a round of {guesses} guesses yields, the target's own token included.",
        "",
        "| " + " | ".join(heads) + " |",
        "|" + "---|" * len(heads),
    ]
    for name, row in sources.items():
        rates = [f"{rate:.3f}" for rate in row["conditional"]]
        lines.append("| " + " | ".join([name, *rates, f"{row['tokens_per_round']:.2f}"]) + " |")
    return [*lines, ""]
