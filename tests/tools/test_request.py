"""What requests may say about tools, and how they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from specproxy.errors import InvalidRequest
from specproxy.tools.request import MAX_TOOLS, read_tools


def tool(name: Any = "weather", **more: Any) -> dict[str, Any]:
    """A function tool."""
    return {"type": "function", "function": {"name": name} | more}


def named(name: str) -> dict[str, Any]:
    """A choice of one function."""
    return {"type": "function", "function": {"name": name}}


def allowed(*names: str, mode: str = "auto") -> dict[str, Any]:
    """A choice among some functions."""
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]}}


@pytest.mark.parametrize(
    ("more", "mode", "names", "parallel"),
    [
        ({}, "auto", {"a", "b"}, True),
        ({"tool_choice": "none"}, "none", {"a", "b"}, True),
        ({"tool_choice": "required"}, "required", {"a", "b"}, True),
        ({"tool_choice": named("b")}, "required", {"b"}, False),
        ({"tool_choice": allowed("b")}, "auto", {"b"}, True),
        ({"tool_choice": allowed("a", mode="required")}, "required", {"a"}, True),
        ({"parallel_tool_calls": False}, "auto", {"a", "b"}, False),
    ],
)
def test_choices_say_what_may_be_called(more: dict[str, Any], mode: str, names: set[str], parallel: bool) -> None:
    """Each form of tool_choice becomes a mode, the functions allowed, and whether several calls may be made."""
    request = read_tools({"tools": [tool("a"), tool("b")]} | more)
    assert request is not None
    assert (request.mode, set(request.allowed), request.parallel, request.legacy) == (mode, names, parallel, False)
    assert [function.name for function in request.callable] == sorted(names)


@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": None, "tool_choice": "auto"}, {"function_call": "none"}])
def test_a_body_without_tools_has_none(body: dict[str, Any]) -> None:
    """No tools, an empty list, and choices that ask for no call are no request for tools."""
    assert read_tools(body) is None


def test_parameters_are_always_an_object() -> None:
    """A function without parameters takes no arguments; a schema without a type is that of an object."""
    request = read_tools({"tools": [tool("a"), tool("b", parameters={"properties": {}}, strict=True)]})
    assert request is not None
    first, second = request.functions
    assert first.parameters == {"type": "object", "properties": {}, "additionalProperties": False}
    assert (second.parameters, second.strict) == ({"type": "object", "properties": {}}, True)


def test_the_older_form_is_translated() -> None:
    """functions and function_call become tools for the template, one call at most, answered in the older form."""
    request = read_tools({"functions": [{"name": "a"}, {"name": "b"}], "function_call": {"name": "b"}})
    assert request is not None
    assert (request.mode, set(request.allowed), request.parallel, request.legacy) == ("required", {"b"}, False, True)
    assert request.declarations[0] == {"type": "function", "function": {"name": "a"}}
    free = read_tools({"functions": [{"name": "a"}], "function_call": "none"})
    assert free is not None
    assert free.mode == "none"


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"tools": "x"}, "tools", "an array"),
        ({"tools": [1]}, "tools[0]", "an object"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "the only type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "an object with a name"),
        ({"tools": [tool(None)]}, "tools[0].function.name", "letters"),
        ({"tools": [tool('a"b')]}, "tools[0].function.name", "letters"),
        ({"tools": [tool("a" * 129)]}, "tools[0].function.name", "1 to 128"),
        ({"tools": [tool(description=1)]}, "tools[0].function.description", "a string"),
        ({"tools": [tool(strict="yes")]}, "tools[0].function.strict", "true or false"),
        ({"tools": [tool(parameters=[])]}, "tools[0].function.parameters", "JSON schema"),
        ({"tools": [tool(parameters={"type": "array"})]}, "tools[0].function.parameters.type", '"object"'),
        ({"tools": [tool(), tool()]}, "tools", "offered twice"),
        ({"tools": [tool(f"f{i}") for i in range(MAX_TOOLS + 1)]}, "tools", "at most 128"),
        ({"tools": [tool()], "functions": [{"name": "a"}]}, "functions", "the older form"),
        ({"tools": [tool()], "parallel_tool_calls": 1}, "parallel_tool_calls", "true or false"),
        ({"tools": [tool()], "tool_choice": "any"}, "tool_choice", '"required"'),
        ({"tools": [tool()], "tool_choice": 1}, "tool_choice", "an object"),
        ({"tools": [tool()], "tool_choice": {"type": "custom"}}, "tool_choice.type", "allowed_tools"),
        ({"tools": [tool()], "tool_choice": named("b")}, "tool_choice.function.name", r"offered \(weather\), got 'b'"),
        ({"tools": [tool()], "tool_choice": {"type": "function"}}, "tool_choice.function", "with a name"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "with a mode"),
        ({"tools": [tool()], "tool_choice": allowed(mode="none")}, "tool_choice.allowed_tools.mode", '"auto"'),
        ({"tools": [tool()], "tool_choice": allowed()}, "tool_choice.allowed_tools.tools", "at least one"),
        (
            {"tools": [tool()], "tool_choice": allowed("x")},
            "tool_choice.allowed_tools.tools[0].function.name",
            "one of the functions",
        ),
        ({"tool_choice": "required"}, "tool_choice", "needs `tools`"),
        ({"tool_choice": named("a")}, "tool_choice", "needs `tools`"),
        ({"function_call": {"name": "a"}}, "function_call", "needs `functions`"),
        ({"functions": [{"name": "a"}], "function_call": {"name": "b"}}, "function_call.name", "one of the functions"),
        ({"functions": [{"name": "a"}], "function_call": "required"}, "function_call", '"none", "auto"'),
        ({"functions": [{}]}, "functions[0].name", "letters"),
    ],
)
def test_faults_name_their_field(body: dict[str, Any], param: str, message: str) -> None:
    """What is wrong is a 400 that names the field and says what was expected."""
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_tools(body)
    assert caught.value.param == param
