"""One stream of events out of several: what a client has got already is cut from an answer that begins again.

An answer is a function of prompt, parameters and seed, so another replica writes the same text, though its events are
cut elsewhere, as other drafts were accepted. Text, arguments and lists of logprobs grow from event to event; of the
answer that begins again as much is dropped of each as was written before, and compared on the way: where it is not the
same, the client would get a mixture of two answers, and ``Diverged`` is raised instead.
"""

from __future__ import annotations

from typing import Any

import msgspec

from specproxy.errors import Draining, EngineFailed, EngineUnavailable

_GROWING_TEXT = frozenset({"text", "content", "reasoning_content", "reasoning", "refusal", "arguments"})
_ELSEWHERE = frozenset({Draining.code, EngineUnavailable.code})
_END = b"\n\n"
_DATA = b"data: "
_DONE = b"data: [DONE]"

Path = tuple[str | int, ...]
Whole = Any
"""Text, or a list."""


class Diverged(EngineFailed):
    """The answer that began again is another one."""

    code = "replica_lost"


class Interrupted(Exception):
    """The replica stops in the middle of an answer, and says so: it may go on elsewhere."""


class Splice:
    """Takes the bytes of an answer's stream, and gives those that the client is to get.

    Only whole events are given, so that a stream that is cut within one can go on. Errors in the stream pass, but for
    those of a replica that stops. ``begun``: something was given; ``ended``: also the end.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._pieces: dict[Path, list[Whole]] = {}
        self._written: dict[Path, Whole] = {}
        self._seen: dict[Path, object] = {}
        self._position: dict[Path, int] = {}
        self._names: dict[str, object] = {}
        self._counted = False
        self._again = False
        self.begun = False
        self.ended = False

    def feed(self, data: bytes) -> bytes:
        """What is new in ``data``. Raises Diverged, Interrupted."""
        *events, self._rest = (self._rest + data).split(_END)
        return b"".join([self._event(event) for event in events])

    def begin_again(self) -> None:
        """What is fed from now on is the answer from its beginning."""
        self._again = True
        self._rest = b""
        self._written = {path: _joined(pieces) for path, pieces in self._pieces.items()}
        self._position = {}

    def _event(self, event: bytes) -> bytes:
        if event == _DONE:
            self.ended = True
        elif event.startswith(_DATA):
            chunk = msgspec.json.decode(event[len(_DATA) :])
            if chunk.get("error") and chunk["error"].get("code") in _ELSEWHERE:
                raise Interrupted(chunk["error"].get("message"))
            if "choices" in chunk:
                new = self._take(chunk)
                if self._again and not new:
                    return b""
                if self._again:
                    event = _DATA + msgspec.json.encode(chunk)
        self.begun = True
        return event + _END

    def _take(self, chunk: dict[str, Any]) -> bool:
        """Book a chunk, and leave of it what is new; whether that is anything."""
        for name in ("id", "created"):
            if name in chunk:
                chunk[name] = self._names.setdefault(name, chunk[name])
        if not chunk["choices"]:
            # The counts at the end. Those of the answer that is complete are the ones that go with its id.
            first, self._counted = not self._counted, True
            return first
        return self._objects(chunk["choices"], ())

    def _objects(self, nodes: list[dict[str, Any]], path: Path) -> bool:
        # All of them are booked, whether or not the first was new.
        return sum([self._object(node, (*path, node["index"])) for node in nodes]) > 0

    def _object(self, node: dict[str, Any], path: Path) -> bool:
        new = False
        for name, value in list(node.items()):
            here = (*path, name)
            if isinstance(value, dict):
                new |= self._object(value, here)
            elif name == "tool_calls" and isinstance(value, list):
                new |= self._objects(value, here)
            elif (isinstance(value, str) and name in _GROWING_TEXT) or isinstance(value, list):
                node[name] = self._grow(value, here)
                new |= bool(node[name])
            elif name != "index" and value is not None:
                known = self._seen.get(here) == value
                new |= not known
                self._seen[here] = value
                if known and "delta" in path:
                    del node[name]  # Clients add up what deltas say, also names.
        return new

    def _grow(self, value: Whole, path: Path) -> Whole:
        """What ``value`` adds to what was written there."""
        at = self._position.get(path, 0)
        self._position[path] = at + len(value)
        overlap = self._written.get(path, value[:0])[at : at + len(value)]
        if value[: len(overlap)] != overlap:
            raise Diverged("another replica took this answer over, and computed another one from the same seed")
        new = value[len(overlap) :]
        self._pieces.setdefault(path, []).append(new)
        return new


def _joined(pieces: list[Whole]) -> Whole:
    return "".join(pieces) if isinstance(pieces[0], str) else [item for piece in pieces for item in piece]
