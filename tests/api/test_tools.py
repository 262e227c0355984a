"""Tools and thoughts in chat: what a body becomes, and how an answer's tokens become calls, thoughts and content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specproxy.errors import InvalidRequest
from specproxy.server.api import AnswerMeta, ApiContext, ParsedRequest, parse_chat, wants_format
from specproxy.structured.grammars import Grammars
from specproxy.tools.reasoning import ReasoningFormat
from specproxy.vocabulary import SamplingParams
from tests.api.conftest import Parse, Wire

HOUSE = Path(__file__).parents[2] / "specproxy" / "models" / "house" / "target"
EOS = 2
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
ODD: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
WEATHER = {"name": "weather", "parameters": CITY}
TOOLS = [{"type": "function", "function": WEATHER}, {"type": "function", "function": {"name": "now"}}]
ONE = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
TWO = ONE + '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
LARGE = [
    {"type": "function", "function": {"name": f"f{i}", "parameters": CITY | {"description": "x" * 60_000}}}
    for i in range(5)
]
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": CITY}}


def ids_of(request: ParsedRequest, text: str) -> list[int]:
    """The tokens of an answer that comes to its own end."""
    return [*request.context.tokenizer.encode(text, special=False), EOS]


def whole(wire: Wire, request: ParsedRequest, text: str) -> dict[str, Any]:
    """The one choice of an answer that is not streamed."""
    body = json.loads(wire.run(request, [wire.deltas(request, ids_of(request, text), [])]))
    choice: dict[str, Any] = body["choices"][0]
    return choice


def streamed(wire: Wire, request: ParsedRequest, text: str, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """The one choice of every chunk of a stream."""
    deltas = wire.deltas(request, ids_of(request, text), list(sizes))
    return [choice for event in wire.events(wire.run(request, [deltas])) for choice in event["choices"]]


def put_together(choices: list[dict[str, Any]]) -> dict[str, Any]:
    """A message from its deltas, by the API's rules."""
    message: dict[str, Any] = {"content": None}
    for choice in choices:
        for name, value in choice["delta"].items():
            if name == "tool_calls":
                calls = message.setdefault("tool_calls", [])
                for call in value:
                    if call["index"] == len(calls):
                        calls.append({"id": call["id"], "type": call["type"], "function": call["function"]})
                    else:
                        calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            elif isinstance(value, str):
                message[name] = (message.get(name) or "") + value
    return message


def test_tools_reach_the_prompt_and_the_grammar(chat: Parse) -> None:
    """The template writes the declarations out; the markers, special tokens of this model, keep their text."""
    request = chat(tools=TOOLS, tool_choice="required")
    assert "# Tools" in request.prompts[0].text
    assert json.dumps(TOOLS[0]) in request.prompts[0].text
    assert "<[3]>" in request.params.grammar
    assert request.reading is not None
    assert request.reading.kept == {3, 4}


@pytest.mark.parametrize("fields", [{}, {"tools": []}, {"tools": None, "tool_choice": "auto"}, {"functions": []}])
def test_without_tools_nothing_is_new(chat: Parse, fields: dict[str, Any]) -> None:
    """No grammar, nothing that reads the text, the prompt of a request that has no such field."""
    request = chat(**fields)
    assert (request.params, request.reading, request.prompts) == (SamplingParams(), None, chat().prompts)


def test_forbidden_calls_leave_text(chat: Parse, wire: Wire) -> None:
    """With none the declarations stand in the prompt, the grammar knows no call, and an answer is its text."""
    request = chat(tools=TOOLS, tool_choice="none")
    assert request.prompts == chat(tools=TOOLS).prompts
    assert "call" not in request.params.grammar.replace("tool_call", "")
    assert request.reading is None
    assert whole(wire, request, "Hi.")["message"]["content"] == "Hi."


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("Hello.", "Hello.", []),
        (ONE, None, [("weather", '{"city": "Oslo"}')]),
        (TWO, None, [("weather", '{"city": "Oslo"}'), ("now", "{}")]),
        ("Let me see. " + ONE, "Let me see. ", [("weather", '{"city": "Oslo"}')]),
    ],
)
@pytest.mark.parametrize("sizes", [(), (1,) * 80, (5, 1, 9)])
def test_streamed_and_whole_say_the_same(
    chat: Parse, wire: Wire, text: str, content: str | None, calls: list[tuple[str, str]], sizes: Sequence[int]
) -> None:
    """In any bursts, content and calls add up to the message of the whole answer, with the same reason and ids."""
    choice = whole(wire, chat(tools=TOOLS), text)
    message = choice["message"]
    assert (message["content"], message["role"]) == (content, "assistant")
    made = message.get("tool_calls", [])
    assert [(call["function"]["name"], call["function"]["arguments"]) for call in made] == calls
    assert len({call["id"] for call in made}) == len(made)
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    chunks = streamed(wire, chat(tools=TOOLS, stream=True), text, sizes)
    together = put_together(chunks)
    assert together == {name: value for name, value in message.items() if name != "refusal"}
    assert [chunk["finish_reason"] for chunk in chunks if chunk["finish_reason"]] == [choice["finish_reason"]]


@pytest.mark.parametrize("sizes", [(), (1,) * 80, (5, 1, 9)])
def test_logprobs_and_ids_stand_beside_calls(chat: Parse, wire: Wire, sizes: Sequence[int]) -> None:
    """Every token is told of once, markers and the end included, whatever its text became."""
    fields = {"tools": TOOLS, "logprobs": True, "return_token_ids": True}
    choice = whole(wire, chat(**fields), "So: " + TWO)
    chunks = streamed(wire, chat(stream=True, **fields), "So: " + TWO, sizes)
    told = [entry for chunk in chunks if chunk["logprobs"] for entry in chunk["logprobs"]["content"]]
    assert told == choice["logprobs"]["content"]
    assert [token for chunk in chunks for token in chunk.get("token_ids", [])] == choice["token_ids"]
    assert len(told) == len(choice["token_ids"])


def test_each_choice_has_its_own_calls(chat: Parse, wire: Wire) -> None:
    """Choices are read apart, and ids are unique over all of them."""
    request = chat(tools=TOOLS, n=2)
    deltas = [wire.deltas(request, ids_of(request, text), []) for text in (ONE, TWO)]
    first, second = json.loads(wire.run(request, deltas))["choices"]
    made = first["message"]["tool_calls"] + second["message"]["tool_calls"]
    assert (len(made), len({call["id"] for call in made})) == (3, 3)


def test_the_older_form_is_answered_in_the_older_form(chat: Parse, wire: Wire) -> None:
    """functions are declared as tools, and a call is function_call, whole and streamed."""
    fields = {"functions": [WEATHER], "function_call": {"name": "weather"}}
    assert chat(**fields).prompts == chat(tools=TOOLS[:1]).prompts
    choice = whole(wire, chat(**fields), ONE)
    call = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    assert (choice["message"]["function_call"], choice["finish_reason"]) == (call, "function_call")
    assert "tool_calls" not in choice["message"]
    parts = [chunk["delta"].get("function_call", {}) for chunk in streamed(wire, chat(stream=True, **fields), ONE, [3])]
    assert {name: "".join(part.get(name, "") for part in parts) for name in call} == call


@pytest.mark.parametrize(
    ("text", "reason", "verdicts", "ending"),
    [
        (TWO, "stop", ["well-formed", "well-formed"], "tool_calls"),
        (ONE + '<tool_call>{"name": "now", "arg', "length", ["well-formed", "truncated"], "length"),
        ('<tool_call>{"name": "other", "arguments": {}}</tool_call>', "stop", ["malformed"], "stop"),
        ("Hello.", "stop", [], "stop"),
    ],
)
def test_calls_are_judged(
    chat: Parse, wire: Wire, meta: AnswerMeta, text: str, reason: str, verdicts: list[str], ending: str
) -> None:
    """By how they are written; calls are to be answered only where all of them are whole."""
    request = chat(tools=TOOLS)
    ids = ids_of(request, text)
    answer = request.answer(meta)
    for delta in wire.deltas(request, ids if reason == "stop" else ids[:-1], [4, 1], reason):
        answer.push(0, delta)
    assert (answer.call_verdicts, answer.finish_reasons) == (verdicts, [ending])
    assert len(answer.call_faults) == len([verdict for verdict in verdicts if verdict != "well-formed"])


def test_a_stop_string_ends_a_call_too(chat: Parse, wire: Wire) -> None:
    """What came before it is there, and the reason asks nobody to call."""
    choice = whole(wire, chat(tools=TOOLS, stop="Oslo"), ONE)
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "'
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "Oslo")


@pytest.mark.parametrize(
    ("text", "verdicts"), [(ONE, []), ('{"city": "Oslo"}', ["valid"]), ('{"town": "Oslo"}', ["invalid"])]
)
def test_a_schema_is_for_answers_that_call_nothing(
    chat: Parse, wire: Wire, meta: AnswerMeta, text: str, verdicts: list[str]
) -> None:
    """Beside tools, a response_format judges content; both are in one grammar."""
    request = chat(tools=TOOLS, response_format=FORMAT)
    assert "content: %json" in request.params.grammar
    answer = request.answer(meta)
    for delta in wire.deltas(request, ids_of(request, text), [2]):
        answer.push(0, delta)
    assert answer.verdicts == verdicts


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": "weather"}, "tools"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice"),
        ({"tools": TOOLS, "parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "functions": [WEATHER]}, "functions"),
        ({"tools": TOOLS, "min_tokens": 2}, "min_tokens"),
        ({"tools": TOOLS, "ignore_eos": True}, "ignore_eos"),
        ({"tools": LARGE, "tool_choice": "required"}, "tools"),
        ({"messages": [{"role": "tool", "content": "cold", "tool_call_id": []}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "tool", "content": "cold"}]}, "messages[0].tool_call_id"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": ODD}}]},
            "tools[0].function.parameters.properties.a.uniqueItems",
        ),
        (
            {"functions": [WEATHER, {"name": "f", "strict": True, "parameters": ODD}]},
            "functions[1].parameters.properties.a.uniqueItems",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"required": 1}}}],
                "tool_choice": "required",
            },
            "tools[0].function.parameters.required",
        ),
    ],
)
def test_refusals_name_the_place(chat: Parse, fields: dict[str, Any], param: str) -> None:
    """A 400 with the path of what is wrong, before anything is generated."""
    with pytest.raises(InvalidRequest) as caught:
        chat(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_what_no_grammar_says_is_left_to_the_model(chat: Parse, choice: str) -> None:
    """A schema that is not strict is kept to as far as it can be, whatever it calls itself."""
    parameters = ODD | {"$schema": "http://json-schema.org/schema#"}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    assert chat(tools=[tool], tool_choice=choice).params.grammar


def test_a_model_without_a_known_form_refuses_tools(context: ApiContext) -> None:
    """A 400 that says so, in either form, unless its form is named where the model is loaded."""
    for field in ({"tools": TOOLS}, {"functions": [WEATHER]}):
        body = json.dumps({"model": "house", "messages": [{"role": "user", "content": "Hi"}]} | field).encode()
        with pytest.raises(InvalidRequest) as caught:
            parse_chat(body, replace(context, form=None))
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, "tools", "tools_not_supported")
    named = ApiContext.load(HOUSE, "house", 2048, tool_format="llama3")
    assert named.form is not None
    assert (named.form.name, named.token_ids) == ("llama3", {})


@pytest.mark.parametrize(("grammar", "param"), [("{", "response_format"), ("start: nothing\n", "tools")])
def test_what_the_engine_cannot_compile_is_named(grammar: str, param: str) -> None:
    """A schema's grammar by the field that brought it, one with calls by tools."""
    with pytest.raises(InvalidRequest) as caught:
        Grammars(HOUSE / "tokenizer.json", 8192, [EOS]).matcher(SamplingParams(grammar=grammar))
    assert caught.value.param == param


@pytest.fixture(scope="module")
def thinking(context: ApiContext) -> ApiContext:
    """The model, were it one that thinks."""
    return replace(context, reasoning=ReasoningFormat("<think>", "</think>"))


def ask(context: ApiContext, **fields: Any) -> ParsedRequest:
    """A chat request to this model."""
    body = {"model": "house", "messages": [{"role": "user", "content": "Hi"}]} | fields
    return parse_chat(json.dumps(body).encode(), context)


@pytest.mark.parametrize("sizes", [(), (1,) * 80])
def test_thoughts_are_told_apart(thinking: ApiContext, wire: Wire, sizes: Sequence[int]) -> None:
    """Before content and calls, with and without tools, streamed and whole."""
    for fields, rest in (({}, "Yes."), ({"tools": TOOLS}, ONE)):
        text = f"<think>\nhm\n</think>\n\n{rest}"
        message = whole(wire, ask(thinking, **fields), text)["message"]
        assert message["reasoning_content"] == "hm"
        assert (message["content"], len(message.get("tool_calls", []))) == (("Yes.", 0) if not fields else (None, 1))
        together = put_together(streamed(wire, ask(thinking, stream=True, **fields), text, sizes))
        assert together == {name: value for name, value in message.items() if name != "refusal"}


def test_thoughts_that_the_prompt_opens(thinking: ApiContext, wire: Wire) -> None:
    """An answer begins inside them where the prompt ends with their marker, and its grammar too."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "<think>"}]
    request = ask(thinking, messages=messages, continue_final_message=True, tools=TOOLS)
    assert request.params.grammar.startswith("start: thoughts answer\n")
    message = whole(wire, request, "hm</think>Yes.")["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "Yes.")


def test_a_schema_alone_leaves_no_room_for_thoughts(thinking: ApiContext) -> None:
    """The grammar is the schema's, so all of the text is content."""
    assert ask(thinking, response_format=FORMAT).reading is None


def test_bodies_with_tools_are_read_in_a_thread() -> None:
    """As those with a schema are: there are schemas to compile."""
    assert wants_format(json.dumps({"tools": TOOLS}).encode())
    assert wants_format(json.dumps({"functions": [WEATHER]}).encode())
