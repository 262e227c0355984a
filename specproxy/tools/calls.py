"""An answer's text, in pieces, to content and tool calls.

A call goes through a coroutine that takes one character at a time, so where the text is cut cannot matter. Outside of
calls only the end of the text that may be the start of one is held back.

Nothing is lost: a call that turns out not to be well formed becomes content, up to the character at which it broke,
and what follows is looked at afresh. White space belongs to the form, not to the content, where it stands between two
calls, or between one and the edge of the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator

from specproxy.tools.events import Arguments, CallBegins, CallEnds, Event, Malformed, Text, merged
from specproxy.tools.formats import ARGS_MARKER, ARGUMENT_KEYS, CALL_ID_MARKER, ToolFormat
from specproxy.tools.json_reader import Fault, Reader, expect, expect_colon, read_object, read_string, skip_space
from specproxy.tools.openings import find_opening, is_filler, surely_text

_OTHER_KEYS = ("type", "id")
"""Members that some models add to a call; read and left out."""


class _Call:
    """The call being read. ``begun``: the client has been told; ``arguments`` are then only those still to be told."""

    __slots__ = ("arguments", "begun", "has_arguments", "name")

    def __init__(self) -> None:
        self.name: str | None = None
        self.arguments: list[str] = []
        self.has_arguments = False
        self.begun = False


class ToolParser:
    """The calls of one answer. ``names``: functions that may be called; ``make_id``: a call's id by its index.

    ``constrained`` says that a grammar keeps calls well formed. Arguments are then told as they come; should a call
    break off all the same, its CallEnds says so, and what followed its arguments is content. Without it a call is told
    when it is complete.
    """

    def __init__(
        self, form: ToolFormat, names: Collection[str], make_id: Callable[[int], str], *, constrained: bool = False
    ) -> None:
        self._form = form
        self._names = frozenset(names)
        self._make_id = make_id
        self._constrained = constrained
        self.num_calls = 0
        self._events: list[Event] = []
        self._held = ""
        # Outside of calls: nothing but filler since the answer's start or the last call.
        self._quiet = True
        self._reader: Reader | None = None
        # Text read since the marker, or since what was last told: content, should the call be none.
        self._raw: list[str] = []
        self._call = _Call()
        # What was read of an opened call could end here: only marks of its form are missing.
        self._enough = False

    def push(self, text: str) -> list[Event]:
        """What ``text`` adds."""
        while text:
            text = self._outside(text) if self._reader is None else self._inside(self._reader, text)
        self._tell_arguments()
        return self._taken()

    def flush(self) -> list[Event]:
        """What is left at the answer's end. A call that lacks only its closing marks is accepted."""
        if self._reader is not None:
            if self._enough:
                self._finish()
            else:
                self._break("the answer ended inside of it")
            self._reader = None
        elif not (self._quiet and self.num_calls and not self._held.strip()):
            self._say(self._held)
        self._held = ""
        return self._taken()

    def _outside(self, piece: str) -> str:
        """Content up to the next call; returns what is left of ``piece``, to be read as a call."""
        text, self._held = self._held + piece, ""
        again = self.num_calls > 0
        opening = find_opening(self._form, text, quiet=self._quiet, again=again)
        if opening is None:
            self._hold(text)
            return ""
        start, end = opening
        if self._quiet and is_filler(self._form, text[:start], again=again):
            start = 0
        self._say(text[:start])
        self._raw = [text[start:end]]
        self._call, self._enough = _Call(), False
        self._reader = self._read_opened()
        next(self._reader)
        return text[end:]

    def _hold(self, text: str) -> None:
        """Say ``text`` but for its end, which may be the start of an opening, and filler that may stand before one."""
        said = surely_text(self._form, text)
        if self._quiet and is_filler(self._form, said, again=self.num_calls > 0):
            said = ""
        self._say(said)
        self._held = text[len(said) :]

    def _inside(self, reader: Reader, text: str) -> str:
        """Read on in an opened call; returns what is left of ``text`` where it ends or breaks."""
        for i, char in enumerate(text):
            self._raw.append(char)
            try:
                reader.send(char)
            except StopIteration:
                self._reader = None
                return text[i + 1 :]
            except Fault as fault:
                self._raw.pop()
                self._reader = None
                self._break(str(fault))
                return text[i:]
        return ""

    def _read_opened(self) -> Reader:
        """What stands behind an opening, by the form's layout."""
        char = yield from skip_space()
        if self._form.layout in ("list", "named"):
            yield from self._read_list(char) if char == "[" else self._read_named(char)
            return
        yield from self._read_call(char)
        if self._form.closing:
            char = yield from skip_space()
            yield from expect(self._form.closing, char)
        self._finish()

    def _read_list(self, char: str) -> Reader:
        """The array of calls behind its bracket."""
        while char != "]":
            char = yield from skip_space()
            yield from self._read_call(char)
            self._finish()
            char = yield from skip_space()
            if char not in ",]":
                raise Fault("expected a comma or ]")
            self._enough = char == "]"

    def _read_named(self, char: str) -> Reader:
        """A name, perhaps an id, and the arguments."""
        name = ""
        while char not in "[{":
            name += char
            if not any(known.startswith(name) for known in self._names):
                raise Fault("no such function was offered")
            char = yield
        self._take_name(name)
        if char == "[":
            char = yield from _skip_marks()
        yield from self._read_arguments(char)
        self._finish()

    def _read_call(self, char: str) -> Reader:
        """A call's object, whose first character is ``char``."""
        if char != "{":
            raise Fault("expected a JSON object")
        seen: set[str] = set()
        char = ","
        while char == ",":
            if (yield from skip_space()) != '"':
                raise Fault("expected the name of a member, in quotes")
            key = yield from read_string()
            kind = "arguments" if key in ARGUMENT_KEYS else key
            if kind in seen or kind not in ("name", "arguments", *_OTHER_KEYS):
                raise Fault("expected a name and arguments, each once, and nothing else")
            seen.add(kind)
            yield from self._read_member(kind)
            char = yield from skip_space()
            if char not in ",}":
                raise Fault("expected a comma or }")
        if "name" not in seen or (self._form.layout == "bare" and "arguments" not in seen):
            raise Fault("a call needs a name and arguments")
        self._enough = True

    def _read_member(self, kind: str) -> Reader:
        yield from expect_colon()
        char = yield from skip_space()
        if kind == "arguments":
            yield from self._read_arguments(char)
            return
        if char != '"':
            raise Fault("expected a string")
        text = yield from read_string()
        if kind == "name":
            self._take_name(text)

    def _take_name(self, name: str) -> None:
        if name not in self._names:
            raise Fault("no such function was offered")
        self._call.name = name
        if self._constrained and self._call.has_arguments:
            self._begin(name)

    def _read_arguments(self, char: str) -> Reader:
        """The object of arguments, whose first character is ``char``."""
        if char != "{":
            raise Fault("expected the arguments as a JSON object")
        call = self._call
        call.has_arguments = True
        if self._constrained and call.name is not None:
            self._begin(call.name)
        reader = read_object()
        next(reader)
        self._take_argument(char)
        while True:
            char = yield
            try:
                reader.send(char)
            except StopIteration:
                self._take_argument(char)
                return
            self._take_argument(char)

    def _take_argument(self, char: str) -> None:
        self._call.arguments.append(char)
        if self._call.begun:
            self._raw.clear()

    def _begin(self, name: str) -> None:
        self._call.begun = True
        self._events.append(CallBegins(self.num_calls, self._make_id(self.num_calls), name))
        self._raw.clear()

    def _finish(self) -> None:
        """The call is complete."""
        call = self._call
        if call.name is not None:
            if not call.has_arguments:
                call.arguments.append("{}")
            if not call.begun:
                self._begin(call.name)
            self._tell_arguments()
            self._events.append(CallEnds(self.num_calls))
            self.num_calls += 1
        self._raw.clear()
        self._call, self._enough, self._quiet = _Call(), True, True

    def _break(self, fault: str) -> None:
        """The call is none, or breaks off."""
        text = "".join(self._raw)
        self._raw.clear()
        if self._call.begun:
            self._tell_arguments()
            self._events.append(CallEnds(self.num_calls, fault))
            self.num_calls += 1
            self._say(text)
        elif self._form.opening in text or self._call.name is not None:
            self._events.append(Malformed(text, fault))
        else:
            # A JSON object by itself, which never said that it was a call; or the end of a list.
            self._say(text)
        self._quiet = False

    def _tell_arguments(self) -> None:
        if self._call.begun and self._call.arguments:
            self._events.append(Arguments(self.num_calls, "".join(self._call.arguments)))
            self._call.arguments.clear()

    def _say(self, text: str) -> None:
        if text:
            self._events.append(Text(text))
            self._quiet = False

    def _taken(self) -> list[Event]:
        events, self._events = self._events, []
        return merged(events)


def _read_marker() -> Generator[None, str, str]:
    """A marker in brackets whose first bracket is read."""
    marker = "["
    while not marker.endswith("]"):
        marker += yield
        if not any(known.startswith(marker) for known in (ARGS_MARKER, CALL_ID_MARKER)):
            raise Fault(f"expected {ARGS_MARKER}")
    return marker


def _skip_marks() -> Generator[None, str, str]:
    """What may stand between a name and its arguments, whose first bracket is read; returns the character behind it."""
    marker = yield from _read_marker()
    if marker == CALL_ID_MARKER:
        while (char := (yield)) != "[":
            if not char.isalnum():
                raise Fault("expected an id")
        marker = yield from _read_marker()
    if marker != ARGS_MARKER:
        raise Fault(f"expected {ARGS_MARKER}")
    return (yield from skip_space())
