"""Tools over HTTP: calls that are free, forced, named or forbidden, streamed and whole, and what stands beside them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest

Body = Callable[..., dict[str, Any]]
ASKED = [{"role": "user", "content": "Use a tool: what is the weather in Oslo?"}]
WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTIONS = [{"name": "weather", "parameters": WEATHER, "strict": True}, {"name": "now"}]
TOOLS = [{"type": "function", "function": function} for function in FUNCTIONS]
NAMED = {"type": "function", "function": {"name": "weather"}}
PLAIN = {"x-specproxy-speculate": "off"}


@pytest.fixture
def tool_body(chat_body: Body) -> Body:
    """A request that offers two functions, with room for a call or two."""

    def body(**fields: Any) -> dict[str, Any]:
        return chat_body(messages=ASKED, max_tokens=80, **{"tools": TOOLS} | fields)

    return body


def without_ids(message: Any) -> dict[str, Any]:
    """A message, whatever its calls are named and however much the SDK adds."""
    made: dict[str, Any] = message.model_dump(exclude_none=True)
    for call in made.get("tool_calls", []):
        assert call.pop("id").startswith("call_")
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    return made


def streamed(client: openai.OpenAI, body: dict[str, Any]) -> Any:
    """The answer as the SDK's own helper puts it together from a stream."""
    with client.chat.completions.stream(**body) as stream:
        for _ in stream:
            pass
        return stream.get_final_completion()


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": "auto", "n": 2},
        {"tool_choice": "required", "temperature": 0.0},
        {"tool_choice": "required", "n": 2},
        {"tool_choice": NAMED},
        {"tool_choice": "none"},
        {"tool_choice": "required", "parallel_tool_calls": False, "logprobs": True, "top_logprobs": 1},
    ],
    ids=["auto", "greedy", "required", "named", "none", "single"],
)
def test_streamed_plain_and_whole_are_the_same(client: openai.OpenAI, tool_body: Body, fields: dict[str, Any]) -> None:
    """Whatever drafts, and however it is sent, each choice has the same content, calls, reason and logprobs."""
    body = tool_body(**fields)
    whole = client.chat.completions.create(**body)
    plain = client.chat.completions.create(**body, extra_headers=PLAIN)
    together = streamed(client, body)
    assert whole.model_extra is not None
    assert plain.model_extra is not None
    assert whole.model_extra["specproxy"]["drafted"] > 0 == plain.model_extra["specproxy"]["drafted"]
    for choice in whole.choices:
        for other in (plain.choices[choice.index], together.choices[choice.index]):
            assert without_ids(other.message) == without_ids(choice.message)
            assert other.finish_reason == choice.finish_reason
            if choice.logprobs is not None:
                assert other.logprobs is not None
                assert other.logprobs.content == choice.logprobs.content


@pytest.mark.parametrize(("choice", "name"), [("required", None), (NAMED, "weather")])
def test_a_forced_call_has_its_schema(client: openai.OpenAI, tool_body: Body, choice: Any, name: str | None) -> None:
    """Required and named calls name an offered function, and its arguments are what the schema says."""
    answer = client.chat.completions.create(**tool_body(tool_choice=choice, parallel_tool_calls=False, temperature=1.0))
    made = answer.choices[0]
    assert (made.finish_reason, made.message.content) == ("tool_calls", None)
    (call,) = made.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name in ({name} if name else {"weather", "now"})
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        assert set(arguments) == {"city", "days"}
        assert arguments["city"] in ("Oslo", "Rome")
        assert 1 <= arguments["days"] <= 9
    else:
        assert arguments == {}


@pytest.mark.parametrize(("cut", "reason"), [({"max_tokens": 14}, "length"), ({"stop": ['"days"']}, "stop")])
def test_a_call_that_is_cut_short_shows_what_there_is(
    client: openai.OpenAI, tool_body: Body, cut: dict[str, Any], reason: str
) -> None:
    """The beginning of the arguments, the same streamed and whole, and a reason that asks nobody to call."""
    body = tool_body(tool_choice=NAMED) | cut
    whole = client.chat.completions.create(**body).choices[0]
    (call,) = whole.message.tool_calls or []
    chunks = [choice for chunk in client.chat.completions.create(**body, stream=True) for choice in chunk.choices]
    parts = [part.function for chunk in chunks for part in chunk.delta.tool_calls or []]
    assert "".join(part.arguments for part in parts) == call.function.arguments
    assert call.function.arguments.startswith('{"city":')
    assert not call.function.arguments.endswith("}")
    assert whole.finish_reason == chunks[-1].finish_reason == reason


def test_no_call_is_made_where_none_may_be(client: openai.OpenAI, tool_body: Body) -> None:
    """With tool_choice none the answer is text."""
    made = client.chat.completions.create(**tool_body(tool_choice="none")).choices[0]
    assert made.message.tool_calls is None
    assert isinstance(made.message.content, str)
    assert made.finish_reason in ("stop", "length")


def test_chunks_have_the_form_of_the_api(client: openai.OpenAI, tool_body: Body) -> None:
    """Id, type and name once, then arguments in pieces under the call's index; the counts at the end."""
    body = tool_body(tool_choice=NAMED, stream=True, stream_options={"include_usage": True})
    chunks = list(client.chat.completions.create(**body))
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert (deltas[0].role, deltas[0].content) == ("assistant", None)
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert {call.index for call in calls} == {0}
    assert [(call.type, call.function.name) for call in calls if call.id] == [("function", "weather")]
    assert all(call.function.name is None for call in calls[1:])
    assert json.loads("".join(call.function.arguments for call in calls))
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "tool_calls"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0


def test_a_call_is_answered_and_the_conversation_goes_on(client: openai.OpenAI, tool_body: Body) -> None:
    """What the assistant said goes back as it came, with the tool's answer; the model has both in its prompt."""
    first = client.chat.completions.create(**tool_body(tool_choice=NAMED)).choices[0].message
    (call,) = first.tool_calls or []
    answer = {"role": "tool", "tool_call_id": call.id, "content": '{"temperature": -3}'}
    body = tool_body(tool_choice="none")
    before = client.chat.completions.create(**body)
    after = client.chat.completions.create(**body | {"messages": [*ASKED, first, answer]})
    assert isinstance(after.choices[0].message.content, str)
    assert after.usage is not None
    assert before.usage is not None
    assert after.usage.prompt_tokens > before.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**body | {"messages": [*ASKED, first, answer | {"tool_call_id": "other"}]})
    assert caught.value.param == "messages[2].tool_call_id"


def test_the_older_form_is_answered_in_the_older_form(client: openai.OpenAI, tool_body: Body) -> None:
    """functions and function_call, whole and streamed, and back as history."""
    body = tool_body(tools=None, functions=FUNCTIONS, function_call={"name": "weather"})
    whole = client.chat.completions.create(**body).choices[0]
    assert (whole.finish_reason, whole.message.content, whole.message.tool_calls) == ("function_call", None, None)
    call = whole.message.function_call
    assert call is not None
    assert call.name == "weather"
    chunks = list(client.chat.completions.create(**body, stream=True))
    parts = [c.delta.function_call for chunk in chunks for c in chunk.choices if c.delta.function_call]
    assert "".join(part.name or "" for part in parts) == "weather"
    assert "".join(part.arguments or "" for part in parts) == call.arguments
    history = [*ASKED, whole.message, {"role": "function", "name": "weather", "content": "cold"}]
    next_one = client.chat.completions.create(**body | {"messages": history, "function_call": "none"}).choices[0]
    assert isinstance(next_one.message.content, str)


def test_a_schema_that_cannot_be_kept_to_is_named(client: openai.OpenAI, tool_body: Body) -> None:
    """A 400 with the path in `tools`, before anything is generated; not strict and not forced, it is served."""
    bad = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": bad, "strict": True}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**tool_body(tools=[tool], stream=True))
    assert caught.value.param == "tools[0].function.parameters.properties.a.uniqueItems"
    tool["function"]["strict"] = False  # type: ignore[index]
    assert client.chat.completions.create(**tool_body(tools=[tool], tool_choice="required")).choices


def test_tools_beside_a_format(client: openai.OpenAI, tool_body: Body) -> None:
    """An answer either calls or has the schema; whatever was generated is one of the two."""
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}}
    body = tool_body(response_format=form, n=4, temperature=1.0)
    for choice in client.chat.completions.create(**body).choices:
        if choice.message.tool_calls is None and choice.finish_reason == "stop":
            assert set(json.loads(choice.message.content or "")) == {"ok"}
    single = client.chat.completions.create(**body | {"n": 1, "tool_choice": "none"}).choices[0]
    assert set(json.loads(single.message.content or "")) == {"ok"}


def test_calls_are_counted_by_verdict(server: Any, client: openai.OpenAI, tool_body: Body) -> None:
    """Whole calls as well formed, those that a limit or a stop string ends as truncated; the reason says so too."""

    def counts() -> dict[str, float]:
        verdicts = ("well-formed", "malformed", "truncated")
        return {v: float(server.metric("specproxy_tool_calls_total", verdict=v)) for v in verdicts}

    before = counts()
    body = tool_body(tool_choice=NAMED)
    client.chat.completions.create(**body)
    short = client.chat.completions.create(**body | {"max_tokens": 12}).choices[0]
    stopped = client.chat.completions.create(**body, stop=['"days"']).choices[0]
    assert (short.finish_reason, stopped.finish_reason) == ("length", "stop")
    assert {v: n - before[v] for v, n in counts().items()} == {"well-formed": 1, "malformed": 0, "truncated": 2}
