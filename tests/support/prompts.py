"""The prompt files, with token ids as the server would make them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from specproxy.bench.records import bundled
from specproxy.text.template import ChatTemplate
from specproxy.text.tokenizer import Tokenizer

REPOSITORY = Path(__file__).parent.parent.parent
HOUSE = REPOSITORY / "specproxy" / "models" / "house" / "target"
ROUTES = REPOSITORY.parent / "shared" / "data" / "eval" / "routes.jsonl"
"""The standard route mix, which is no part of this repository."""

Prompt = dict[str, Any]
"""A line of a prompt file with ``ids``, its token ids, and ``reference_ids``, those of its reference answer."""


def mini_prompts() -> list[Prompt]:
    """The bundled prompt mix."""
    return list(_read(bundled()))


def route_prompts() -> list[Prompt]:
    """The standard route mix, tools left out. Raises OSError where it is not there."""
    return list(_read(ROUTES, without="tools"))


def few_of_each(prompts: list[Prompt], limit: int) -> list[Prompt]:
    """The first ``limit`` prompts of every category."""
    taken: dict[str, int] = {}
    chosen = []
    for prompt in prompts:
        taken[prompt["category"]] = taken.get(prompt["category"], 0) + 1
        if taken[prompt["category"]] <= limit:
            chosen.append(prompt)
    return chosen


def _read(file: Path, without: str = "") -> Iterator[Prompt]:
    tokenizer, template = _text()
    for line in file.read_text(encoding="utf-8").splitlines():
        prompt: Prompt = json.loads(line)
        if prompt["category"] == without:
            continue
        prompt["ids"] = tokenizer.encode(template.render(prompt["messages"]), special=True)
        prompt["reference_ids"] = tokenizer.encode(prompt.get("reference") or "", special=False)
        yield prompt


@functools.cache
def _text() -> tuple[Tokenizer, ChatTemplate]:
    template = ChatTemplate.load(HOUSE)
    if template is None:
        raise RuntimeError("the house model has a chat template")
    return Tokenizer.load(HOUSE), template
