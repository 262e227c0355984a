"""What an answer's text turns out to be, piece by piece.

Every parser of this room returns lists of these. Neighbours of one kind are merged within a list; lists of several
pushes, merged again, are the same however the text was cut.
"""

from __future__ import annotations

from msgspec import Struct


class Text(Struct, frozen=True):
    """Visible content."""

    text: str


class Reasoning(Struct, frozen=True):
    """The model's thoughts before its answer."""

    text: str


class CallBegins(Struct, frozen=True):
    """A call of function ``name``. ``index`` counts the answer's calls from 0."""

    index: int
    id: str
    name: str


class Arguments(Struct, frozen=True):
    """More of the arguments of call ``index``: together the JSON object exactly as the model wrote it."""

    index: int
    fragment: str


class CallEnds(Struct, frozen=True):
    """Nothing more of call ``index``. ``fault``: why it broke off after it had begun; its arguments may be no JSON."""

    index: int
    fault: str = ""


class Malformed(Struct, frozen=True):
    """What looked like a call and is none, for the reason in ``fault``. ``text``, all of it, is visible content."""

    text: str
    fault: str


Event = Text | Reasoning | CallBegins | Arguments | CallEnds | Malformed


def merged(events: list[Event]) -> list[Event]:
    """``events`` with neighbouring texts, thoughts and fragments of one call joined."""
    groups: list[list[Event]] = []
    for event in events:
        if groups and _continues(groups[-1][-1], event):
            groups[-1].append(event)
        else:
            groups.append([event])
    return [_joined(group) for group in groups]


def _continues(last: Event, event: Event) -> bool:
    if isinstance(event, Arguments):
        return isinstance(last, Arguments) and last.index == event.index
    return isinstance(event, Text | Reasoning) and type(last) is type(event)


def _joined(group: list[Event]) -> Event:
    first = group[0]
    if isinstance(first, Text | Reasoning) and len(group) > 1:
        return type(first)("".join(event.text for event in group if isinstance(event, Text | Reasoning)))
    if isinstance(first, Arguments) and len(group) > 1:
        return Arguments(first.index, "".join(event.fragment for event in group if isinstance(event, Arguments)))
    return first
