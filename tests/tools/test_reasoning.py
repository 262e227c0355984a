"""Thoughts told apart from the answer behind them."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.tools.calls import ToolParser
from specproxy.tools.events import CallBegins, Event, Reasoning, Text, merged
from specproxy.tools.formats import FORMATS
from specproxy.tools.parser import AnswerParser
from specproxy.tools.reasoning import ReasoningFormat, ReasoningParser, detect_reasoning

THINK = ReasoningFormat("<think>", "</think>")
NOISE = st.lists(st.sampled_from(["<think>", "</think>", "<thi", "</th", "nk>", " ", "\n", "a", "b c", "<"])).map(
    "".join
)


def parsed(text: str, cuts: list[int], *, opened: bool) -> list[Event]:
    """Events of ``text`` cut at these places."""
    parser = AnswerParser(ReasoningParser(THINK, opened=opened))
    edges = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    events = [e for start, end in itertools.pairwise(edges) for e in parser.push(text[start:end])]
    return merged(events + parser.flush())


@given(NOISE, st.lists(st.integers(0, 60)), st.booleans())
def test_cuts_change_nothing(text: str, cuts: list[int], opened: bool) -> None:
    """Any text gives the same thoughts and answer however it is cut."""
    whole = parsed(text, [], opened=opened)
    assert parsed(text, cuts, opened=opened) == whole
    assert parsed(text, list(range(len(text))), opened=opened) == whole


@pytest.mark.parametrize(
    ("text", "opened", "events"),
    [
        ("<think>\nhm\n</think>\n\nYes.", False, [Reasoning("hm"), Text("Yes.")]),
        ("hm\n</think>\n\nYes.", True, [Reasoning("hm"), Text("Yes.")]),
        ("<think>\n\n</think>\n\nYes.", False, [Text("Yes.")]),
        ("Yes. <think>no</think>", False, [Text("Yes. <think>no</think>")]),
        ("<think>a</think>b</think>c", False, [Reasoning("a"), Text("b</think>c")]),
        ("  <thi", False, [Text("  <thi")]),
        ("still at it </th", True, [Reasoning("still at it </th")]),
        ("", False, []),
    ],
)
def test_thoughts_end_at_their_marker(text: str, opened: bool, events: list[Event]) -> None:
    """Thoughts are what stands between the markers where the answer begins; white space around is the form's."""
    assert parsed(text, [], opened=opened) == events


def test_thoughts_are_shown_while_they_last() -> None:
    """Only the possible start of the closing marker, and white space before it, is held back."""
    parser = ReasoningParser(THINK, opened=True)
    assert parser.push("\n first ") == [Reasoning("first")]
    assert parser.push("then </thi") == [Reasoning(" then")]
    assert parser.push("s") == [Reasoning(" </this")]


def test_calls_are_read_behind_thoughts_only() -> None:
    """A call that is merely thought of is not made."""
    call = '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    parser = AnswerParser(ReasoningParser(THINK, opened=True), ToolParser(FORMATS["house"], ["weather"], str))
    events = merged(parser.push(f"I could {call}</think>\n{call}") + parser.flush())
    assert events[0] == Reasoning(f"I could {call}")
    assert [event for event in events if isinstance(event, CallBegins)] == [CallBegins(0, "0", "weather")]


def test_the_prompt_says_whether_thoughts_are_open() -> None:
    """Templates open thoughts at the prompt's end, open and close them, or leave it to the model."""
    assert THINK.opened_by("<|assistant|>\n<think>\n")
    assert not THINK.opened_by("<|assistant|>\n<think>\n\n</think>\n\n")
    assert not THINK.opened_by("<|assistant|>\n")


def test_templates_tell_the_markers() -> None:
    """A template that writes or cuts off thoughts names their markers; others have none."""
    assert detect_reasoning("{{ content.split('</think>')[-1] }}") == THINK
    assert detect_reasoning("[THINK]{{ thought }}[/THINK]") == ReasoningFormat("[THINK]", "[/THINK]")
    assert detect_reasoning("{{ content }}") is None
    assert detect_reasoning(None) is None


def test_an_answer_without_parsers_is_text() -> None:
    """A model that neither thinks nor calls has nothing but text."""
    parser = AnswerParser()
    assert (parser.push("<think>"), parser.push(""), parser.flush()) == ([Text("<think>")], [], [])
