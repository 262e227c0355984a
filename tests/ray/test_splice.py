"""One stream out of several: whatever was cut wherever, the client's copy is the undisturbed answer."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specproxy.ray.splice import Diverged, Interrupted, Splice

TEXT = "It was a dark and stormy night; the rain fell in torrents."


def event(choices: list[dict[str, Any]], name: str = "one", **more: Any) -> bytes:
    """A chunk as an event."""
    return b"data: " + msgspec.json.encode({"id": name, "created": len(name), "choices": choices, **more}) + b"\n\n"


def answer(cuts: list[int], name: str, text: str = TEXT) -> list[bytes]:
    """The events of an answer of chat, with a logprob a letter, whose text is cut at ``cuts``."""
    events = [event([{"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}], name)]
    ends = sorted({cut for cut in cuts if 0 < cut < len(text)} | {len(text)})
    for begin, end in zip([0, *ends], ends, strict=False):
        logprobs = {"content": [{"token": letter} for letter in text[begin:end]]}
        delta = {"content": text[begin:end]}
        events.append(event([{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": None}], name))
    events.append(event([{"index": 0, "delta": {}, "finish_reason": "stop"}], name))
    events.append(event([], name, usage={"completion_tokens": 9}))
    return [*events, b"data: [DONE]\n\n"]


def read(data: bytes) -> dict[str, Any]:
    """What a client makes of a stream."""
    found: dict[str, Any] = {"text": "", "logprobs": "", "finish": [], "ids": set(), "usage": 0, "roles": 0}
    for line in re.findall(rb"data: (.*)\n\n", data):
        if line == b"[DONE]":
            found["done"] = True
            continue
        chunk = msgspec.json.decode(line)
        found["ids"].add((chunk["id"], chunk["created"]))
        found["usage"] += "usage" in chunk
        for choice in chunk["choices"]:
            found["text"] += choice["delta"].get("content", "")
            found["roles"] += "role" in choice["delta"]
            found["logprobs"] += "".join(item["token"] for item in (choice.get("logprobs") or {}).get("content", []))
            found["finish"] += [choice["finish_reason"]] if choice["finish_reason"] else []
    return found


CUTS = st.lists(st.integers(1, len(TEXT)), max_size=12)


@given(CUTS, CUTS, CUTS, st.floats(0, 1), st.floats(0, 1), st.integers(1, 40))
def test_the_copy_is_the_answer(
    first: list[int], second: list[int], third: list[int], lost_at: float, again_at: float, size: int
) -> None:
    """Two replicas are lost at any byte, each cuts the text its own way: nothing is missing, nothing comes twice."""
    streams = [b"".join(answer(cuts, name)) for cuts, name in ((first, "one"), (second, "two"), (third, "three"))]
    streams[0] = streams[0][: int(lost_at * len(streams[0]))]
    streams[1] = streams[1][: int(again_at * len(streams[1]))]
    splice, got = Splice(), b""
    for number, stream in enumerate(streams):
        if number:
            splice.begin_again()
        for at in range(0, len(stream), size):
            got += splice.feed(stream[at : at + size])
        if splice.ended:
            break
    found = read(got)
    assert (found["text"], found["logprobs"], found["finish"]) == (TEXT, TEXT, ["stop"])
    assert (found["roles"], found["usage"], found["done"], len(found["ids"])) == (1, 1, True, 1)


def test_an_undisturbed_stream_passes_byte_for_byte() -> None:
    """Events, comments and errors go out as they came in."""
    stream = b": keep-alive\n\n" + b"".join(answer([3, 9], "one")) + b'data: {"error":{"message":"m"}}\n\n'
    assert Splice().feed(stream) == stream


@pytest.mark.parametrize("code", ["draining", "engine_unavailable"])
def test_a_replica_that_stops_is_no_end(code: str) -> None:
    """An answer that is cut as its replica shuts down goes on elsewhere; its error is not for the client."""
    splice = Splice()
    splice.feed(b"".join(answer([10], "one")[:2]))
    with pytest.raises(Interrupted):
        splice.feed(b"data: " + msgspec.json.encode({"error": {"message": "m", "code": code}}) + b"\n\n")


def test_another_answer_is_not_mixed_in() -> None:
    """A replica that computes another text is found out before any of it is written."""
    splice = Splice()
    splice.feed(b"".join(answer([10], "one")[:2]))
    splice.begin_again()
    with pytest.raises(Diverged):
        splice.feed(b"".join(answer([10], "two", TEXT.replace("dark", "pink"))))


def test_arguments_of_tools_grow_by_call() -> None:
    """Names and ids of calls come once; arguments go on where they ended."""

    def call(index: int, arguments: str, **more: str) -> bytes:
        function = {"arguments": arguments} | ({"name": more["name"]} if more else {})
        item = {"index": index, "function": function} | ({"id": "c", "type": "function"} if more else {})
        return event([{"index": 0, "delta": {"tool_calls": [item]}, "finish_reason": None}])

    splice = Splice()
    got = splice.feed(call(0, "", name="f") + call(0, '{"a"') + call(1, "", name="g"))
    splice.begin_again()
    got += splice.feed(call(0, '{"a": 1', name="f") + call(0, "}") + call(1, "[]", name="g"))
    calls = [c for line in re.findall(rb"data: (.*)\n\n", got) for c in _calls(line)]
    arguments = ["".join(c["function"].get("arguments", "") for c in calls if c["index"] == i) for i in (0, 1)]
    assert arguments == ['{"a": 1}', "[]"]
    assert [c["function"]["name"] for c in calls if "name" in c["function"]] == ["f", "g"]
    assert sum("id" in c for c in calls) == 2


def _calls(line: bytes) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = msgspec.json.decode(line)["choices"][0]["delta"]["tool_calls"]
    return found
