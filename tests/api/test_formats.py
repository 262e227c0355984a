"""``response_format``: what is taken, what is refused and by which name, and what an answer is judged as."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from specproxy.errors import InvalidRequest
from specproxy.server.api import ParsedRequest, wants_format
from tests.api.conftest import Wire

PERSON = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
EOS = 2


def named(schema: Any, **more: Any) -> dict[str, Any]:
    """A ``response_format`` with a schema."""
    return {"type": "json_schema", "json_schema": {"name": "person", "schema": schema} | more}


@pytest.mark.parametrize(
    ("given", "strict"),
    [
        ({"type": "json_object"}, True),
        (named(PERSON, strict=True), True),
        (named(PERSON, strict=False, description="somebody"), False),
        (named(PERSON), False),
        (named({"type": "object", "properties": {"a": {"not": {}}}}), False),
    ],
)
def test_formats_become_grammars(chat: Callable[..., ParsedRequest], given: dict[str, Any], strict: bool) -> None:
    """JSON of any form, and of a schema, strictly or as far as a grammar can say it; every choice is told."""
    request = chat(response_format=given, n=2)
    assert request.schema is not None
    assert request.schema.strict is strict
    assert request.params.grammar == request.schema.grammar != ""


@pytest.mark.parametrize("given", [None, {"type": "text"}])
def test_plain_text_has_no_grammar(chat: Callable[..., ParsedRequest], given: Any) -> None:
    """Nothing is asked for, nothing is done."""
    request = chat(response_format=given)
    assert (request.schema, request.params.grammar) == (None, "")


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ("json", "response_format"),
        ({}, "response_format.type"),
        ({"type": "yaml"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"schema": PERSON}}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x"}}, "response_format.json_schema"),
        (named([]), "response_format.json_schema.schema"),
        (named(PERSON, name="two words"), "response_format.json_schema.name"),
        (named(PERSON, strict="very"), "response_format.json_schema.strict"),
        (named({"type": "persn"}), "response_format.json_schema.schema.type"),
        (
            named({"type": "object", "properties": {"a": {"items": {"not": {}}}}}, strict=True),
            "response_format.json_schema.schema.properties.a.items.not",
        ),
    ],
)
def test_refusals_name_the_path(chat: Callable[..., ParsedRequest], given: Any, param: str) -> None:
    """A format that is not known, or a schema that cannot be kept to, is a 400 with the path of what is wrong."""
    with pytest.raises(InvalidRequest) as caught:
        chat(response_format=given)
    assert (caught.value.status, caught.value.param) == (400, param)


@pytest.mark.parametrize("beside", [{"min_tokens": 3}, {"ignore_eos": True}])
def test_what_moves_the_end_is_refused_beside_a_format(
    chat: Callable[..., ParsedRequest], beside: dict[str, Any]
) -> None:
    """The grammar alone says where the answer ends."""
    with pytest.raises(InvalidRequest, match="response_format") as caught:
        chat(response_format={"type": "json_object"}, **beside)
    assert caught.value.param == next(iter(beside))


@pytest.mark.parametrize(
    ("text", "reason", "verdict"),
    [
        ('{"name": "Bo"}', "stop", "valid"),
        ('{"nome": "Bo"}', "stop", "invalid"),
        ('{"name": "B', "length", "truncated"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_answers_are_judged(
    chat: Callable[..., ParsedRequest], wire: Wire, meta: Any, text: str, reason: str, verdict: str, stream: bool
) -> None:
    """Streamed or whole, in any bursts, an answer is judged by all of its text once it has ended."""
    request = chat(response_format=named(PERSON), stream=stream)
    ids = request.context.tokenizer.encode(text, special=False) + ([EOS] if reason == "stop" else [])
    answer = request.answer(meta)
    for delta in wire.deltas(request, ids, [1, 3], reason):
        assert answer.verdicts == []
        answer.push(0, delta)
    assert answer.verdicts == [verdict]


def test_a_stop_string_cuts_an_answer_short(chat: Callable[..., ParsedRequest], wire: Wire, meta: Any) -> None:
    """The client's own stop is no fault of the model: the answer counts as truncated."""
    request = chat(response_format=named(PERSON), stop="Bo")
    answer = request.answer(meta)
    ids = request.context.tokenizer.encode('{"name": "Bo"}', special=False)
    for delta in wire.deltas(request, [*ids, EOS], [1] * len(ids)):
        answer.push(0, delta)
    assert answer.verdicts == ["truncated"]


def test_bodies_with_a_schema_are_told_from_others() -> None:
    """What takes longer to read is read in a thread."""
    assert wants_format(json.dumps({"response_format": named(PERSON)}).encode())
    assert not wants_format(b'{"messages": []}')
