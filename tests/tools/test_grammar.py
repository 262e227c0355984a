"""Grammars of answers, tried by llguidance over the house tokenizer, text as single bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llguidance
import pytest

from specproxy.text.tokenizer import Tokenizer
from specproxy.tools.calls import ToolParser
from specproxy.tools.events import CallEnds, Malformed
from specproxy.tools.formats import FORMATS, ToolFormat
from specproxy.tools.grammar import answer_grammar
from specproxy.tools.reasoning import ReasoningFormat
from specproxy.tools.request import ToolRequest, read_tools

HOUSE = Path(__file__).parents[2] / "specproxy" / "models" / "house" / "target"
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"$ref": "#/$defs/days"}},
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"days": {"type": "integer"}},
}
THINK = ReasoningFormat("<think>", "</think>")
CITY, OTHER = '{"city": "Oslo"}', '{"town": "Oslo"}'

Written = Callable[[ToolFormat, list[tuple[str, str]]], str]


class Matching:
    """Whether a grammar takes a text, whose special tokens are those of ``token_ids`` and all else single bytes."""

    def __init__(self) -> None:
        tokenizer = Tokenizer.load(HOUSE)
        text = (HOUSE / "tokenizer.json").read_text("utf-8")
        self._inner = llguidance.LLTokenizer(text, eos_token=list(tokenizer.eos_token_ids))
        views = ((tokenizer.token_bytes(token), token) for token in range(tokenizer.vocab_size))
        self._bytes = {data: token for data, token in views if len(data) == 1}

    def takes(self, grammar: str, text: str, token_ids: dict[str, int]) -> bool:
        """Whether ``text`` is a whole answer by ``grammar``."""
        assert llguidance.LLMatcher.validate_grammar_with_warnings(grammar, self._inner) == (False, [])
        matcher = llguidance.LLMatcher(self._inner, grammar)
        tokens = self._tokens(text, token_ids)
        return matcher.validate_tokens(tokens) == len(tokens) and matcher.consume_tokens(tokens) and self._ends(matcher)

    def _ends(self, matcher: llguidance.LLMatcher) -> bool:
        ends: bool = matcher.is_accepting()
        return ends

    def _tokens(self, text: str, token_ids: dict[str, int]) -> list[int]:
        tokens: list[int] = []
        while text:
            marker = next((marker for marker in token_ids if text.startswith(marker)), "")
            tokens.append(token_ids[marker] if marker else self._bytes[text[0].encode()])
            text = text[len(marker) or 1 :]
        return tokens


@pytest.fixture(scope="module")
def matching() -> Matching:
    """One for all tests: reading the tokenizer takes a moment."""
    return Matching()


@pytest.fixture(params=[True, False], ids=["special", "spelled"])
def token_ids(request: pytest.FixtureRequest, form: ToolFormat) -> dict[str, int]:
    """The form's markers as special tokens of the house model (whichever), or none of them."""
    return dict(zip(form.markers, (3, 4, 1), strict=False)) if request.param else {}


def asked(choice: Any = "auto", *, strict: bool = False, **more: Any) -> ToolRequest:
    """A request that offers a function with arguments and one without."""
    weather = {"name": "weather", "parameters": PARAMETERS, "strict": strict}
    tools = [{"type": "function", "function": weather}, {"type": "function", "function": {"name": "get.time"}}]
    request = read_tools({"tools": tools, "tool_choice": choice} | more)
    assert request is not None
    return request


NAMED = {"type": "function", "function": {"name": "get.time"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.mark.parametrize(
    ("choice", "more", "expected"),
    [
        # plain text, nothing, one call, two, the one named, a wrong argument, an unknown name, text before, text behind
        ("none", {}, "yy......."),
        ("auto", {}, "yyyyyy.y."),
        ("auto", {"strict": True}, "yyyyy..y."),
        ("auto", {"parallel_tool_calls": False}, "yyy.yy.y."),
        ("required", {}, "..yyy...."),
        ("required", {"parallel_tool_calls": False}, "..y.y...."),
        (NAMED, {}, "....y...."),
        (ALLOWED, {}, "....y...."),
    ],
)
def test_only_what_was_asked_for_passes(
    matching: Matching,
    form: ToolFormat,
    token_ids: dict[str, int],
    written: Written,
    choice: Any,
    more: dict[str, Any],
    expected: str,
) -> None:
    """Each choice lets pass the answers that it allows, in exactly the family's form, and no others."""
    grammar = answer_grammar(form, asked(choice, **more), token_ids)
    one = written(form, [("weather", CITY)])
    tagged_text = f"Hi. {form.opening if form.layout == 'bare' else ''}"
    texts = [
        "Hello {you}.",
        "",
        one,
        written(form, [("weather", CITY), ("get.time", "{}")]),
        written(form, [("get.time", "{}")]),
        written(form, [("weather", OTHER)]),
        written(form, [("whether", CITY)]),
        tagged_text + one,
        f"{one} Bye.",
    ]
    got = "".join("y" if matching.takes(grammar, text, token_ids) else "." for text in texts)
    if form.layout == "bare" and choice == "none":
        # An object by itself is content where nothing may be called; the marker still cannot be written.
        expected = "yyyyyyy.y"
    assert got == expected


def test_arguments_are_written_as_templates_write_them(
    matching: Matching, form: ToolFormat, token_ids: dict[str, int], written: Written
) -> None:
    """One space behind commas and colons, and no other white space; references keep their meaning."""
    grammar = answer_grammar(form, asked("required"), token_ids)
    good, *bad = '{"city": "Oslo", "days": 2}', '{"city":"Oslo"}', '{ "city": "Oslo"}', '{"city": "Oslo", "days": "2"}'
    assert matching.takes(grammar, written(form, [("weather", good)]), token_ids)
    assert not any(matching.takes(grammar, written(form, [("weather", text)]), token_ids) for text in bad)


@pytest.mark.parametrize("choice", ["none", "auto"])
def test_the_marker_cannot_be_spelled_out(
    matching: Matching, form: ToolFormat, token_ids: dict[str, int], choice: str
) -> None:
    """Free text cannot hold the opening marker, not even letter by letter, but may hold what begins like it."""
    grammar = answer_grammar(form, asked(choice), token_ids)
    assert not matching.takes(grammar, f"Hi {form.opening} there", {})
    assert matching.takes(grammar, f"Hi {form.opening[:-1]} there", {})


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("opened", [True, False])
def test_thoughts_come_before_the_constrained_answer(
    matching: Matching, form: ToolFormat, written: Written, opened: bool, special: bool
) -> None:
    """Thoughts are free, even to name a call; what follows them is held to the grammar."""
    ids = {"<think>": 1, "</think>": 5} if special else {}
    grammar = answer_grammar(form, asked("required"), ids, reasoning=THINK, opened=opened)
    call = written(form, [("weather", CITY)])
    thoughts = f"{'' if opened else '<think>'}\nhm {call}\n</think>\n\n"
    assert matching.takes(grammar, thoughts + call, ids)
    assert not matching.takes(grammar, f"{thoughts}Hello", ids)
    assert matching.takes(grammar, call, ids) is not opened


def test_plain_answers_may_have_a_schema(
    matching: Matching, form: ToolFormat, token_ids: dict[str, int], written: Written
) -> None:
    """With a schema for its content an answer calls, or follows the schema."""
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    grammar = answer_grammar(form, asked("auto"), token_ids, content=schema)
    call = (form.opening if form.layout == "bare" else "") + written(form, [("weather", CITY)])
    assert matching.takes(grammar, '{"a": 1}', token_ids)
    assert matching.takes(grammar, call, token_ids)
    assert not matching.takes(grammar, "Hello", token_ids)
    assert not matching.takes(grammar, '{"b": 1}', token_ids)


def test_a_family_that_calls_once_is_held_to_it(matching: Matching, written: Written) -> None:
    """Where the template refuses several calls, the grammar lets pass one, whatever the request says."""
    form = FORMATS["llama3"]
    twice = written(form, [("weather", CITY), ("get.time", "{}")])
    once = ToolFormat(
        name="once", layout="bare", opening=form.opening, between="; ", argument_key="parameters", parallel=False
    )
    assert matching.takes(answer_grammar(form, asked("required"), {}), twice, {})
    assert not matching.takes(answer_grammar(once, asked("required"), {}), twice, {})


def test_what_passes_is_read_as_calls(form: ToolFormat, written: Written, matching: Matching) -> None:
    """The grammar and the parser agree on what a call is."""
    request = asked("required", strict=True)
    text = written(form, [("weather", CITY), ("get.time", "{}")])
    assert matching.takes(answer_grammar(form, request, {}), text, {})
    parser = ToolParser(form, request.allowed, "call_{}".format, constrained=True)
    events = parser.push(text) + parser.flush()
    assert [event.fault for event in events if isinstance(event, CallEnds | Malformed)] == ["", ""]
