"""What a chat request says about tools, checked, as one value.

Source: OpenAI's API reference of chat completions. Names may hold dots, colons and slashes as well, as catalogues of
tools do; custom tools, whose input is free text, are refused. The older ``functions`` and ``function_call`` become the
same value, marked ``legacy``, since the answer then has their form.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

from msgspec import Struct

from specproxy.errors import InvalidRequest

MAX_TOOLS = 128
MAX_NAMED = 8
"""Functions that an error message lists."""

_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_NO_PARAMETERS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

Mode = Literal["none", "auto", "required"]


class Function(Struct, frozen=True):
    """A function that is offered. ``parameters``: the JSON schema of its arguments, always that of an object."""

    name: str
    parameters: dict[str, Any]
    strict: bool


class ToolRequest(Struct, frozen=True, kw_only=True):
    """The tools of one request. At least one function is offered.

    ``mode``: whether the answer must not, may or must call; ``allowed``: the functions it may call. ``parallel``: more
    than one call in an answer. ``legacy``: asked for as ``functions``, so answered as ``function_call``.
    ``declarations``: the tools as the chat template takes them.
    """

    functions: tuple[Function, ...]
    declarations: list[dict[str, Any]]
    mode: Mode
    allowed: frozenset[str]
    parallel: bool
    legacy: bool = False

    @property
    def callable(self) -> tuple[Function, ...]:
        """The functions that this answer may call, in the order in which they were offered."""
        return tuple(function for function in self.functions if function.name in self.allowed)


class _Choice(Struct):
    """What ``tool_choice`` asks for; ``names``: ``None`` for all."""

    mode: Mode
    names: list[str] | None = None
    single: bool = False


def read_tools(body: Mapping[str, Any]) -> ToolRequest | None:
    """The tools of a decoded body, ``None`` where it offers none. Raises InvalidRequest naming the field."""
    tools, functions = body.get("tools") or None, body.get("functions") or None
    if tools is not None and functions is not None:
        raise InvalidRequest("`functions` is the older form of `tools`; give one of them", param="functions")
    if functions is not None:
        return _legacy(functions, body.get("function_call"))
    choice, parallel = body.get("tool_choice"), body.get("parallel_tool_calls")
    if parallel is not None:
        _check(isinstance(parallel, bool), "parallel_tool_calls", "true or false", parallel)
    if tools is None:
        _refuse_choice_of_nothing("tool_choice", choice, "tools")
        _refuse_choice_of_nothing("function_call", body.get("function_call"), "functions")
        return None
    declared = _list(tools, "tools")
    offered = [_function(_of_tool(tool, f"tools[{i}]"), f"tools[{i}].function") for i, tool in enumerate(declared)]
    _refuse_twins(offered, "tools")
    asked = _tool_choice(choice, offered)
    return ToolRequest(
        functions=tuple(offered),
        declarations=declared,
        mode=asked.mode,
        allowed=frozenset(function.name for function in offered) if asked.names is None else frozenset(asked.names),
        parallel=parallel is not False and not asked.single,
    )


def _legacy(functions: Any, choice: Any) -> ToolRequest:
    declared = _list(functions, "functions")
    offered = [_function(function, f"functions[{i}]") for i, function in enumerate(declared)]
    _refuse_twins(offered, "functions")
    names = [function.name for function in offered]
    mode: Mode = "auto"
    if isinstance(choice, dict):
        names, mode = [_offered(choice.get("name"), "function_call.name", offered)], "required"
    elif choice is not None:
        _check(choice in ("none", "auto"), "function_call", '"none", "auto" or {"name": …}', choice)
        mode = choice
    return ToolRequest(
        functions=tuple(offered),
        declarations=[{"type": "function", "function": function} for function in declared],
        mode=mode,
        allowed=frozenset(names),
        parallel=False,
        legacy=True,
    )


def _refuse_choice_of_nothing(name: str, choice: Any, source: str) -> None:
    """A choice that asks for a call where nothing is offered. ``none`` and ``auto`` ask for none."""
    if choice not in (None, "none", "auto"):
        raise InvalidRequest(f"`{name}` needs `{source}`: nothing is offered that could be called", param=name)


def _of_tool(tool: dict[str, Any], where: str) -> Any:
    kind = tool.get("type")
    if kind != "function":
        _fail(f"{where}.type", '"function", the only type of tool that is supported', kind)
    return tool.get("function")


def _function(given: Any, where: str) -> Function:
    _check(isinstance(given, dict), where, "an object with a name", given)
    name = given.get("name")
    fits = isinstance(name, str) and _NAME.fullmatch(name) is not None
    _check(fits, f"{where}.name", "1 to 128 letters, digits or any of _ - . : /", name)
    description = given.get("description")
    _check(description is None or isinstance(description, str), f"{where}.description", "a string", description)
    strict = given.get("strict")
    _check(strict is None or isinstance(strict, bool), f"{where}.strict", "true or false", strict)
    return Function(name, _parameters(given.get("parameters"), f"{where}.parameters"), bool(strict))


def _parameters(given: Any, where: str) -> dict[str, Any]:
    """A schema for an object. Without one the function takes no arguments."""
    if given is None:
        return _NO_PARAMETERS
    if not isinstance(given, dict):
        _fail(where, "a JSON schema, which is an object", given)
    if given.get("type", "object") != "object":
        _fail(f"{where}.type", '"object", as arguments are passed by name', given["type"])
    return {"type": "object"} | given


def _refuse_twins(offered: list[Function], where: str) -> None:
    seen: set[str] = set()
    for i, function in enumerate(offered):
        if function.name in seen:
            raise InvalidRequest(f"`{where}[{i}]`: a function named {function.name!r} is offered twice", param=where)
        seen.add(function.name)


def _tool_choice(choice: Any, offered: list[Function]) -> _Choice:
    if choice is None or choice == "auto":
        return _Choice("auto")
    if choice == "none":
        return _Choice("none")
    if choice == "required":
        return _Choice("required")
    if not isinstance(choice, dict):
        _fail("tool_choice", '"none", "auto", "required" or an object', choice)
    if choice.get("type") == "function":
        return _Choice("required", [_named(choice, "tool_choice", offered)], single=True)
    if choice.get("type") != "allowed_tools":
        _fail("tool_choice.type", '"function" or "allowed_tools"', choice.get("type"))
    return _allowed(choice.get("allowed_tools"), offered)


def _allowed(given: Any, offered: list[Function]) -> _Choice:
    where = "tool_choice.allowed_tools"
    if not isinstance(given, dict):
        _fail(where, "an object with a mode and tools", given)
    mode: Any = given.get("mode")
    _check(mode in ("auto", "required"), f"{where}.mode", '"auto" or "required"', mode)
    tools = _list(given.get("tools"), f"{where}.tools")
    _check(bool(tools), f"{where}.tools", "at least one tool", tools)
    names = []
    for i, tool in enumerate(tools):
        _of_tool(tool, f"{where}.tools[{i}]")
        names.append(_named(tool, f"{where}.tools[{i}]", offered))
    return _Choice(mode, names)


def _named(given: dict[str, Any], where: str, offered: list[Function]) -> str:
    """The function that ``{"type": "function", "function": {"name": …}}`` names."""
    function = given.get("function")
    if not isinstance(function, dict):
        _fail(f"{where}.function", "an object with a name", function)
    return _offered(function.get("name"), f"{where}.function.name", offered)


def _offered(name: Any, where: str, offered: list[Function]) -> str:
    known = [function.name for function in offered]
    if name not in known:
        more = ", …" if len(known) > MAX_NAMED else ""
        _fail(where, f"one of the functions offered ({', '.join(known[:MAX_NAMED])}{more})", name)
    return str(name)


def _list(given: Any, where: str) -> list[dict[str, Any]]:
    _check(isinstance(given, list), where, "an array", given)
    _check(len(given) <= MAX_TOOLS, where, f"an array of at most {MAX_TOOLS} entries", f"{len(given)} entries")
    for i, item in enumerate(given):
        _check(isinstance(item, dict), f"{where}[{i}]", "an object", item)
    items: list[dict[str, Any]] = given
    return items


def _check(holds: bool, where: str, expected: str, got: Any) -> None:
    if not holds:
        _fail(where, expected, got)


def _fail(where: str, expected: str, got: Any) -> NoReturn:
    shown = "nothing" if got is None else repr(got)
    shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
    raise InvalidRequest(f"`{where}` must be {expected}, got {shown}", param=where)
