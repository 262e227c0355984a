"""Identity over the whole route mix, in this process: ``make identity``. Minutes; reports what it compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specproxy.vocabulary import SamplingParams
from tests.support.covering import pairwise
from tests.support.driver import Answer, Driver
from tests.support.identity import AXES, Identity, decision
from tests.support.prompts import Prompt, few_of_each

Uncaptured = Callable[[], AbstractContextManager[Console]]

pytestmark = [pytest.mark.identity_full, pytest.mark.timeout(3600)]

ARMS = {"off": ("off", 0), "ngram K=8": ("ngram", 8), "draft_model K=5": ("draft_model", 5)}
TOGETHER = 8
MAX_TOKENS = 64
ARRAY_PROMPTS = 5
ARRAY_TOKENS = 16
LONG_DRAFTS = {
    "temperature": 0.8,
    "drafter": "replay",
    "k": 8,
    "together": 8,
    "cache": "miss",
    "preempt": False,
    "resume": False,
    "sampling": "plain",
    "n": 1,
}
"""Beside the array, whose one case of these two may have answers too short for eight accepted tokens."""


@dataclass
class Row:
    """What was compared under one heading. ``wrong`` describes the answers that differ."""

    answers: int = 0
    tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, prompt: Prompt, plain: Answer, answer: Answer) -> None:
        """One answer against its plain twin."""
        self.answers += 1
        self.tokens += len(answer.tokens)
        self.drafted += sum(counts.drafted for counts in answer.stats.drafts)
        self.accepted += sum(counts.accepted for counts in answer.stats.drafts)
        if answer.visible() != plain.visible():
            self.wrong.append(f"{prompt['id']}: {plain.tokens} became {answer.tokens}")


def print_table(show: Console, title: str, rows: dict[tuple[str, str], Row]) -> None:
    """One line per category and arm, and one for each arm as a whole."""
    table = Table(title=title)
    for column in ("category", "arm"):
        table.add_column(column)
    for column in ("answers", "tokens compared", "drafted", "accepted", "differences"):
        table.add_column(column, justify="right")
    arms = list(dict.fromkeys(arm for _, arm in rows))
    for arm in arms:
        mine = {category: row for (category, name), row in rows.items() if name == arm}
        for category, row in mine.items():
            table.add_row(category, arm, *_cells([row]))
        table.add_row("all", arm, *_cells(mine.values()), style="bold", end_section=True)
    show.print(table)


def _cells(rows: Iterable[Row]) -> list[str]:
    sums = [(r.answers, r.tokens, r.drafted, r.accepted, len(r.wrong)) for r in rows]
    return [str(sum(column)) for column in zip(*sums, strict=True)]


def submit(driver: Driver, prompts: Sequence[Prompt], arm: str) -> list[Answer]:
    """Answers at each prompt's own temperature, all in flight together."""
    return driver.run(
        [
            driver.submission(
                prompt["ids"],
                decision(*ARMS[arm]),
                seed=len(prompt["ids"]),
                params=SamplingParams(temperature=prompt["temperature"], max_tokens=MAX_TOKENS, logprobs=2),
            )
            for prompt in prompts
        ]
    )


def test_the_route_mix_is_answered_alike(
    assemble_engine: Callable[..., Driver], routes: list[Prompt], uncaptured: Uncaptured
) -> None:
    """Every prompt of every category: off, ngram and draft_model, eight at a time, against plain and alone."""
    driver = assemble_engine()
    assert driver.assembled.numerics.exactness.startswith("bitwise")
    rows = {(category, arm): Row() for arm in ARMS for category in dict.fromkeys(p["category"] for p in routes)}
    pool = driver.engine.scheduler.pool
    with uncaptured() as show, Progress(console=show, transient=True) as progress:
        task = progress.add_task("route mix", total=len(routes) * (1 + len(ARMS)))
        for start in range(0, len(routes), TOGETHER):
            batch = routes[start : start + TOGETHER]
            plain = []
            for prompt in batch:
                pool.forget_idle()
                plain += submit(driver, [prompt], "off")
                progress.advance(task)
            for arm in ARMS:
                pool.forget_idle()
                answers = submit(driver, batch, arm)
                for prompt, before, after in zip(batch, plain, answers, strict=True):
                    rows[prompt["category"], arm].add(prompt, before, after)
                progress.advance(task, len(batch))
    numerics = driver.assembled.numerics
    with uncaptured() as show:
        print_table(show, f"identity · route mix · {numerics.exactness}, {numerics.dtype} on {numerics.device}", rows)
    assert [wrong for row in rows.values() for wrong in row.wrong] == []
    assert all(row.accepted > 0 for (_, arm), row in rows.items() if arm != "off")


def test_the_array_on_some_of_every_category(
    assemble_engine: Callable[..., Driver], routes: list[Prompt], uncaptured: Uncaptured
) -> None:
    """Every two values of every two axes, on a few prompts of each category."""
    driver = assemble_engine()
    experiment = Identity(driver, max_tokens=ARRAY_TOKENS)
    cases, prompts = [*pairwise(AXES), LONG_DRAFTS], few_of_each(routes, ARRAY_PROMPTS)
    categories = list(dict.fromkeys(p["category"] for p in prompts))
    rows = {(category, "array"): Row() for category in categories}
    lengths: set[int] = set()
    with uncaptured() as show, Progress(console=show, transient=True) as progress:
        task = progress.add_task("covering array", total=len(cases) * len(categories))
        for case in cases:
            for category in categories:
                mine = [p for p in prompts if p["category"] == category]
                row = rows[category, "array"]
                row.wrong += experiment.mismatches(case, mine)
                row.answers += len(mine) * case["n"]
                row.tokens += experiment.compared
                row.drafted += sum(counts.drafted for counts in experiment.counts.values())
                row.accepted += sum(counts.accepted for counts in experiment.counts.values())
                lengths |= experiment.accepted_lengths("replay")
                experiment.compared = 0
                experiment.counts.clear()
                progress.advance(task)
    with uncaptured() as show:
        print_table(show, f"identity · {len(cases)} cases of the array on {len(prompts)} prompts", rows)
    assert [wrong for row in rows.values() for wrong in row.wrong] == []
    assert lengths == set(range(9))
