"""Texts to content and calls, in every family, however they are cut."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specproxy.tools.calls import ToolParser
from specproxy.tools.events import Arguments, CallBegins, CallEnds, Event, Malformed, Text
from specproxy.tools.formats import FORMATS, ToolFormat

Written = Callable[[ToolFormat, list[tuple[str, str]]], str]
Parsed = Callable[..., list[Event]]

ARGUMENTS = st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers() | st.lists(st.booleans())).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
CALLS = st.lists(st.tuples(st.sampled_from(["weather", "get.time"]), ARGUMENTS), min_size=1, max_size=3)
CUTS = st.lists(st.integers(0, 200), max_size=12)
FRAGMENTS = [
    *(
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "_call>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<|python_tag|>",
        "[",
        "]",
    ),
    *(
        '{"name": "weather"',
        '{"name": "other"',
        ', "arguments": {',
        ', "parameters": {"a": 1',
        '"b": [',
        "}",
        "}}",
        ",",
    ),
    *(" ", "\n", "; ", "weather", "get.time", "<", "call", '"', "hello", "{}", "12"),
]
NOISE = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
SHARED = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content(events: list[Event]) -> str:
    """Everything that a client is shown as content."""
    return "".join(event.text for event in events if isinstance(event, Text | Malformed))


def calls(events: list[Event]) -> list[tuple[str, str]]:
    """Name and arguments of every call."""
    found: list[tuple[str, str]] = []
    for event in events:
        if isinstance(event, CallBegins):
            found.append((event.name, ""))
        elif isinstance(event, Arguments):
            name, arguments = found[event.index]
            found[event.index] = (name, arguments + event.fragment)
    return found


@SHARED
@given(made=CALLS, cuts=CUTS, constrained=st.booleans())
def test_calls_are_read_as_they_are_written(
    form: ToolFormat, written: Written, parsed: Parsed, made: list[tuple[str, str]], cuts: list[int], constrained: bool
) -> None:
    """Name and exact arguments of every call come out, in order, with nothing beside them."""
    text = written(form, made)
    events = parsed(form, text, [cut for cut in cuts if cut < len(text)], constrained=constrained)
    assert calls(events) == made
    assert content(events) == ""
    assert [e for e in events if isinstance(e, CallEnds)] == [CallEnds(i) for i in range(len(made))]
    assert [e.id for e in events if isinstance(e, CallBegins)] == [f"call_{i}" for i in range(len(made))]


@SHARED
@given(text=NOISE, cuts=CUTS, constrained=st.booleans())
def test_cuts_change_nothing(form: ToolFormat, parsed: Parsed, text: str, cuts: list[int], constrained: bool) -> None:
    """Any text gives the same events whole, character by character, and cut anywhere."""
    whole = parsed(form, text, constrained=constrained)
    assert parsed(form, text, [cut for cut in cuts if cut < len(text)], constrained=constrained) == whole
    assert parsed(form, text, range(len(text)), constrained=constrained) == whole


@SHARED
@given(text=NOISE, cuts=CUTS)
def test_no_text_is_lost(form: ToolFormat, parsed: Parsed, text: str, cuts: list[int]) -> None:
    """Where no call is made, the content is the text; where calls are made, content and arguments are pieces of it."""
    events = parsed(form, text, [cut for cut in cuts if cut < len(text)])
    made = calls(events)
    if not made:
        assert content(events) == text
    at = 0
    for event in events:
        if isinstance(event, Text | Malformed | Arguments):
            piece = event.fragment if isinstance(event, Arguments) else event.text
            if piece != "{}":
                at = text.index(piece, at) + len(piece)
    for _, arguments in made:
        assert isinstance(json.loads(arguments), dict)


@pytest.mark.parametrize("name", ["hermes", "mistral", "mistral-named"])
def test_text_before_a_call_is_content(name: str, written: Written, parsed: Parsed) -> None:
    """Content and calls of one answer are told apart."""
    form = FORMATS[name]
    events = parsed(form, "Let me see." + form.between * (name == "hermes") + written(form, [("weather", "{}")]))
    assert content(events) == "Let me see."
    assert calls(events) == [("weather", "{}")]


def test_arguments_are_told_as_they_come_where_a_grammar_holds() -> None:
    """A constrained call begins with its arguments, and each piece of them is told at once."""
    parser = ToolParser(FORMATS["house"], ["weather"], "call_{}".format, constrained=True)
    assert parser.push('<tool_call>{"name": "weather", "argume') == []
    assert parser.push('nts": {"ci') == [CallBegins(0, "call_0", "weather"), Arguments(0, '{"ci')]
    assert parser.push('ty": "Oslo"}') == [Arguments(0, 'ty": "Oslo"}')]
    assert parser.push("}</tool_") == []
    assert parser.push("call>") == [CallEnds(0)]
    assert parser.flush() == []


def test_content_waits_only_for_a_marker() -> None:
    """Only the end of a text that may be the start of a marker is held back."""
    parser = ToolParser(FORMATS["house"], ["weather"], "call_{}".format)
    assert parser.push("a < b") == [Text("a < b")]
    assert parser.push(" and <tool_ca") == [Text(" and ")]
    assert parser.push("st>") == [Text("<tool_cast>")]
    assert parser.push("<too") == []
    assert parser.flush() == [Text("<too")]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('<tool_call>{"name": "nobody", "arguments": {}}</tool_call>', "no such function"),
        ('<tool_call>{"name": "weather", "arguments": {"a": 1,}}</tool_call>', "name of a member"),
        ('<tool_call>{"name": "weather", "arguments": "x"}</tool_call>', "JSON object"),
        ('<tool_call>{"name": "weather", "extra": 1}</tool_call>', "nothing else"),
        ('<tool_call>{"arguments": {}}</tool_call>', "needs a name"),
        ('<tool_call>{"name": "weather", "arguments": {}}</tool_cull>', "</tool_call>"),
        ("<tool_call>weather()</tool_call>", "JSON object"),
        ('<tool_call>{"name": "weather", "arguments": {"a":', "ended inside"),
    ],
)
def test_malformed_calls_are_content_and_told_as_such(parsed: Parsed, text: str, fault: str) -> None:
    """A call that is none is content to the last character, with the reason beside it."""
    events = parsed(FORMATS["house"], f"So: {text}")
    assert content(events) == f"So: {text}"
    assert calls(events) == []
    (told,) = [event for event in events if isinstance(event, Malformed)]
    assert fault in told.fault


def test_a_call_behind_a_malformed_one_is_found(parsed: Parsed) -> None:
    """Reading starts afresh at the character that broke a call."""
    events = parsed(FORMATS["house"], '<tool_call>{"name"<tool_call>{"name": "weather", "arguments": {}}</tool_call>')
    assert content(events) == '<tool_call>{"name"'
    assert calls(events) == [("weather", "{}")]


def test_a_constrained_call_that_breaks_off_says_so(parsed: Parsed) -> None:
    """Where arguments were told already, the end of the call carries the fault, and the rest is content."""
    cut = parsed(FORMATS["house"], '<tool_call>{"name": "weather", "arguments": {"a": 1', constrained=True)
    assert cut[-2:] == [Arguments(0, '{"a": 1'), CallEnds(0, "the answer ended inside of it")]
    broken = parsed(FORMATS["house"], '<tool_call>{"name": "weather", "arguments": {"a": }}', constrained=True)
    assert broken[-2:] == [CallEnds(0, "expected a value"), Text("}}")]


@pytest.mark.parametrize("tail", ["", "\n", "\n</tool", "\n</tool_call"])
def test_a_call_that_lacks_its_closing_marks_at_the_end_counts(parsed: Parsed, tail: str) -> None:
    """An answer that stops behind a call's object made that call."""
    events = parsed(FORMATS["hermes"], '<tool_call>\n{"name": "weather", "arguments": {}}' + tail)
    assert (calls(events), content(events)) == ([("weather", "{}")], "")


def test_llama_calls_may_stand_behind_a_tag(parsed: Parsed) -> None:
    """The tag opens a call anywhere; without it only an object where the answer begins, or behind a call, is one."""
    call = '{"name": "weather", "parameters": {}}'
    assert calls(parsed(FORMATS["llama3"], f"Wait. <|python_tag|>{call}")) == [("weather", "{}")]
    assert content(parsed(FORMATS["llama3"], f"Wait. {call}")) == f"Wait. {call}"
    assert len(calls(parsed(FORMATS["llama3"], f"{call}; {call};{call}"))) == 3


def test_a_json_answer_is_no_malformed_call(parsed: Parsed) -> None:
    """In the form without markers an object that calls nothing is plain content."""
    assert parsed(FORMATS["llama3"], '{"name": "Ada", "age": 36}') == [Text('{"name": "Ada", "age": 36}')]


def test_names_and_arguments_may_change_places(parsed: Parsed) -> None:
    """Arguments in front of the name, under either key, and members that models add are read."""
    text = '<tool_call>{"type": "function", "parameters": {"a": 1}, "name": "weather"}</tool_call>'
    for constrained in (False, True):
        assert calls(parsed(FORMATS["hermes"], text, constrained=constrained)) == [("weather", '{"a": 1}')]


def test_a_call_without_arguments_has_none(parsed: Parsed) -> None:
    """Between markers a name is enough; the client gets an empty object."""
    assert calls(parsed(FORMATS["hermes"], '<tool_call>{"name": "weather"}</tool_call>')) == [("weather", "{}")]


def test_mistral_writes_ids_or_leaves_marks_out(parsed: Parsed) -> None:
    """An id between name and arguments is read over, and so is a missing mark."""
    form = FORMATS["mistral-named"]
    assert calls(parsed(form, "[TOOL_CALLS]weather[CALL_ID]a1b2[ARGS]{}")) == [("weather", "{}")]
    assert calls(parsed(form, '[TOOL_CALLS]weather{"a": 1}')) == [("weather", '{"a": 1}')]
    assert calls(parsed(FORMATS["mistral"], "[TOOL_CALLS]weather[ARGS]{}")) == [("weather", "{}")]
