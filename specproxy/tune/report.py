"""What a tuning found, for people: a table a route, and the comments of its candidate."""

from __future__ import annotations

import textwrap
from typing import Any

from specproxy.bench.field import Grid
from specproxy.bench.session import machine_notes
from specproxy.tune.session import Options, Tried, Tuned

COMMENT_WIDTH = 112
"""Columns of a comment's text."""


def table(tuned: Tuned) -> Grid:
    """A row for everything that was tried on a route, the winner first; the last row is the winner's test."""
    head = ["setting", "pairs", "ratio to now [95 %]", "accept", "len", "identical", ""]
    rows = [_row(item, item.out or "won") for item in tuned.tried]
    if tuned.winner is not None:
        rows.append(_row(tuned.winner, f"on other prompts: {tuned.verdict}"))
    return Grid(f"route {tuned.route}, now: {tuned.now}", head, rows)


def _row(item: Tried, last: str) -> list[str]:
    counts = f"{item.identical}/{item.answers}"
    shown = [_share(item.acceptance), _number(item.tokens_per_step)]
    return [item.setting, str(item.pairs), _ratio(item), *shown, counts, last]


def _ratio(item: Tried) -> str:
    if item.ratio is None:
        return "-"
    if item.low is None or item.high is None:
        return f"{item.ratio:.2f}x"
    return f"{item.ratio:.2f}x [{item.low:.2f}, {item.high:.2f}]"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def conclusion(tuned: Tuned) -> str:
    """One line."""
    what = "keep what is" if tuned.verdict == "keep" or tuned.winner is None else f"{tuned.winner.setting}"
    return f"route {tuned.route}: {what} ({tuned.reason})"


def method(options: Options) -> str:
    """How the numbers were made."""
    return (
        f"{options.at_once} prompt(s) at a time, at most {options.max_tokens} tokens, both arms of a pair one right "
        f"after the other in random order, seed {options.seed}, the engine in this process; ratio: geometric mean over "
        "pairs of tokens/s to what the route does now, with its always-valid 95 % interval; len: tokens per target step"
    )


def evidence(tuned: Tuned, winner: Tried, options: Options, facts: dict[str, Any], date: str) -> list[str]:
    """The comments above a candidate's ``speculate``: what was measured, where and when."""
    tokens = f"{_number(winner.now_tokens_per_step)} to {_number(winner.tokens_per_step)}"
    accepted = f"{_share(winner.now_acceptance)} to {_share(winner.acceptance)}"
    same = f"{winner.identical} of {winner.answers}"
    searched = f"{len(tuned.tried)} settings on {tuned.searched} prompts, {sum(t.pairs for t in tuned.tried)} pairs"
    sizes = f"{options.at_once} at a time, at most {options.max_tokens} tokens, seed {options.seed}"
    where = f"{winner.pairs} pairs on {tuned.held_out} prompts that the search did not see"
    told = [
        f"specproxy tune, {date}: {_ratio(winner)} of the tokens/s of before ({tuned.now}), {tuned.reason}.",
        f"Speed: {where}; geometric mean and always-valid 95 % interval.",
        f"Accepted drafts: {accepted}; tokens per step: {tokens}; identical answers: {same}.",
        f"Search: {searched}, {sizes}.",
        *machine_notes(facts),
    ]
    return [line for text in told for line in textwrap.wrap(text, COMMENT_WIDTH, subsequent_indent="  ")]
