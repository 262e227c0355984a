"""Calls as each family writes them, and what the parser makes of a text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import pytest

from specproxy.tools.calls import ToolParser
from specproxy.tools.events import Event, merged
from specproxy.tools.formats import ARGS_MARKER, FORMATS, ToolFormat

NAMES = ("weather", "get.time")

Written = Callable[[ToolFormat, Sequence[tuple[str, str]]], str]
Parsed = Callable[..., list[Event]]


def _written(form: ToolFormat, calls: Sequence[tuple[str, str]]) -> str:
    key = form.argument_key
    objects = [f'{{"name": "{name}", "{key}": {arguments}}}' for name, arguments in calls]
    if form.layout == "named":
        return "".join(f"{form.opening}{name}{ARGS_MARKER}{arguments}" for name, arguments in calls)
    if form.layout == "list":
        return f"{form.opening}{form.before}[{form.between.join(objects)}]"
    if form.layout == "tagged":
        objects = [f"{form.opening}{form.before}{made}{form.after}{form.closing}" for made in objects]
    return form.between.join(objects)


def _parsed(form: ToolFormat, text: str, cuts: Sequence[int] = (), *, constrained: bool = False) -> list[Event]:
    parser = ToolParser(form, NAMES, "call_{}".format, constrained=constrained)
    edges = [0, *sorted(cuts), len(text)]
    events: list[Event] = []
    for start, end in itertools.pairwise(edges):
        events += parser.push(text[start:end])
    return merged(events + parser.flush())


@pytest.fixture(scope="session")
def written() -> Written:
    """``written(form, [(name, arguments), …])``: an answer that makes these calls and nothing else."""
    return _written


@pytest.fixture(scope="session")
def parsed() -> Parsed:
    """``parsed(form, text, cuts, constrained=…)``: events of a text that arrives cut at these places."""
    return _parsed


@pytest.fixture(params=list(FORMATS))
def form(request: pytest.FixtureRequest) -> ToolFormat:
    """Each known form in turn."""
    return FORMATS[request.param]
