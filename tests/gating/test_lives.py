"""Kill switches in the middle of a stream, and servers that are killed."""

from __future__ import annotations

import signal
from collections.abc import Callable

import httpx
import msgspec
import pytest

from tests.gating.conftest import NGRAM, Gated

LONG = {"max_tokens": 700, "stream": True, "ignore_eos": True, "temperature": 0}


def read(gated: Gated, *, kill_after: int | None = None) -> tuple[str, dict[str, int]]:
    """The text of a long stream, and what it says of its making; the switch is thrown after so many chunks."""
    body = {"model": "house", "messages": [{"role": "user", "content": "again and again " * 8}], **LONG}
    text, made, count = "", {}, 0
    with (
        httpx.Client(base_url=gated.server.url, timeout=60, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = msgspec.json.decode(line.removeprefix("data: "))
            text += "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
            made = chunk.get("specproxy") or made
            count += 1
            if count == kill_after:
                gated.post("/kill", {"route": "default", "reason": "a test"})
    return text, made


@pytest.mark.slow
def test_a_kill_is_felt_by_a_running_stream_and_outlives_the_server(
    gated: Gated, eventually: Callable[..., None]
) -> None:
    """The text is the same; what comes after the kill is decoded plainly. After kill -9 the switch is off, a candidate
    is where it was, and the log's chain holds."""
    gated.write(NGRAM)
    gated.run()
    quiet, made = read(gated)
    assert made["steps"] < 350
    killed, made = read(gated, kill_after=10)
    assert killed == quiet
    assert made["steps"] > 400
    assert gated.ask()[0].headers["x-specproxy-drafter"] == "off"
    gated.write(NGRAM.replace("ngram}", "ngram, k: 4}"))
    eventually(lambda: gated.phases() == ["active", "shadow"], 15, "the candidate in shadow")
    gated.server.process.send_signal(signal.SIGKILL)
    gated.server.process.wait(10)
    entries = gated.verify()
    gated.run()
    assert gated.phases() == ["active", "shadow"]
    assert gated.verify() == entries
    answer = gated.ask()[0]
    assert answer.headers["x-specproxy-drafter"] == "off"
    assert "a test" in answer.headers["x-specproxy-reason"]
    gated.post("/kill", {"route": "default", "reason": "done"}, method="DELETE")
    assert gated.ask()[0].headers["x-specproxy-drafter"] == "ngram"
    assert [route["candidate"]["phase"] for route in gated.get("/status")["routes"]] == ["shadow"]
    assert gated.verify() == entries + 1
    gated.ask(20)
    assert gated.server.stop() == 0
    assert gated.phases() == ["active", "shadow"], "a server that is told to end is no failure of its candidate"
