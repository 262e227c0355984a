"""Conversations with calls, as templates take them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from specproxy.errors import InvalidRequest
from specproxy.text.template import ChatTemplate
from specproxy.tools.calls import ToolParser
from specproxy.tools.formats import FORMATS
from specproxy.tools.history import make_call_id, template_history
from specproxy.tools.shapes import MessageParts

HOUSE = FORMATS["house"]


def call(arguments: Any = '{"city": "Oslo"}', name: str = "weather", **more: Any) -> dict[str, Any]:
    """A call as clients send it."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}} | more


def assistant(*calls: dict[str, Any]) -> dict[str, Any]:
    """A message that calls."""
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


def test_arguments_become_objects_and_answers_get_names() -> None:
    """A call's arguments are an object for the template, and its answer knows the function's name."""
    given: list[dict[str, Any]] = [assistant(call(id="c1")), {"role": "tool", "tool_call_id": "c1", "content": "rain"}]
    first, second = template_history(given, HOUSE)
    assert first["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    ]
    assert second == {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "rain"}


def test_templates_that_print_arguments_get_json() -> None:
    """Where a template prints what it is given, arguments are JSON in a string."""
    (message,) = template_history([assistant(call({"city": "Øl"}, id="c1"))], replace(HOUSE, arguments_as_text=True))
    assert message["tool_calls"][0]["function"]["arguments"] == '{"city": "Øl"}'


def test_ids_are_made_to_fit() -> None:
    """A family that demands ids of its own form gets them, the same for a call and its answer; fitting ones stay."""
    given: list[dict[str, Any]] = [
        assistant(call(id="call_abcdefgh"), call(id="abc123XYZ")),
        {"role": "tool", "tool_call_id": "abc123XYZ", "content": ""},
        {"role": "tool", "tool_call_id": "call_abcdefgh", "content": ""},
    ]
    first, second, third = template_history(given, FORMATS["mistral"])
    ids = [made["id"] for made in first["tool_calls"]]
    assert ids == [third["tool_call_id"], second["tool_call_id"]]
    assert ids[1] == "abc123XYZ"
    assert len(ids[0]) == 9
    assert ids[0].isalnum()


def test_the_older_form_becomes_todays() -> None:
    """function_call and the role function become a call and its answer, linked by an id."""
    given: list[dict[str, Any]] = [
        {"role": "assistant", "content": "", "function_call": {"name": "weather", "arguments": "{}"}},
        {"role": "function", "name": "weather", "content": "rain"},
    ]
    first, second = template_history(given, HOUSE)
    assert "function_call" not in first
    assert (second["role"], second["tool_call_id"]) == ("tool", first["tool_calls"][0]["id"])


def test_answers_without_an_id_are_taken_in_order() -> None:
    """Without ids the oldest call without an answer is answered; a name narrows the choice."""
    given: list[dict[str, Any]] = [
        assistant(call(name="a"), call(name="b"), call(name="a")),
        {"role": "tool", "name": "b", "content": ""},
        {"role": "tool", "content": ""},
        {"role": "tool", "content": ""},
    ]
    first, *answers = template_history(given, HOUSE)
    ids = [made["id"] for made in first["tool_calls"]]
    assert [answer["tool_call_id"] for answer in answers] == [ids[1], ids[0], ids[2]]


def test_other_messages_stay_as_they_are() -> None:
    """Messages without calls pass through, and an empty list of calls is left out."""
    given: list[dict[str, Any]] = [
        {"role": "user", "content": "hi", "name": "ada"},
        {"role": "assistant", "content": "x", "tool_calls": []},
    ]
    assert template_history(given, None) == [given[0], {"role": "assistant", "content": "x"}]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([assistant(call("{", id="c"))], "messages[0].tool_calls[0].function.arguments"),
        ([assistant(call("[1]", id="c"))], "messages[0].tool_calls[0].function.arguments"),
        ([assistant({"id": "c"})], "messages[0].tool_calls[0].function"),
        ([assistant(call(id=7))], "messages[0].tool_calls[0].id"),
        (
            [{"role": "assistant", "tool_calls": {}}, {"role": "assistant", "tool_calls": {"a": 1}}],
            "messages[1].tool_calls",
        ),
        ([{"role": "assistant", "function_call": "x"}], "messages[0].function_call"),
        ([{"role": "tool", "tool_call_id": "c", "content": ""}], "messages[0].tool_call_id"),
        ([{"role": "tool", "content": ""}], "messages[0].tool_call_id"),
        (
            [assistant(call(id="c")), *[{"role": "tool", "tool_call_id": "c", "content": ""}] * 2],
            "messages[2].tool_call_id",
        ),
    ],
)
def test_faults_name_their_message(messages: list[dict[str, Any]], param: str) -> None:
    """A call that cannot be read, or an answer to none, is a 400 that names its place."""
    with pytest.raises(InvalidRequest) as caught:
        template_history(messages, HOUSE)
    assert caught.value.param == param


def test_what_was_read_is_rendered_as_it_was_written() -> None:
    """The template writes calls that were read from an answer as the model wrote them, so that cached pages hold."""
    template = ChatTemplate.load(Path(__file__).parents[2] / "specproxy" / "models" / "house" / "target")
    assert template is not None
    answer = (
        'Both.<tool_call>{"name": "weather", "arguments": {"city": "Øl", "days": [1, 2.5]}}</tool_call>'
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call>'
    )
    parts = MessageParts()
    parser = ToolParser(HOUSE, ["weather"], "call_{}".format)
    parts.add(parser.push(answer) + parser.flush())
    message = {"role": "assistant", "content": parts.content, "tool_calls": msgspec.to_builtins(parts.tool_calls)}
    text = template.render(template_history([message], HOUSE), add_generation_prompt=False)
    assert text == f"<|im_start|>assistant\n{answer}<|im_end|>\n"


def test_ids_are_the_same_when_they_are_made_again() -> None:
    """A call's id depends on its answer, choice and place alone, and has the form that the family demands."""
    made = [make_call_id(HOUSE, answer, choice, i) for answer in "ab" for choice in (0, 1) for i in (0, 1)]
    assert len(set(made)) == 8
    assert made[0] == make_call_id(HOUSE, "a", 0, 0)
    assert made[0].startswith("call_")
    assert len(made[0]) == 29
    short = make_call_id(FORMATS["mistral"], "a", 0, 0)
    assert len(short) == 9
    assert short.isalnum()
