"""The parts of a passthrough by themselves: events, headers, counters, addresses, chains, error bodies."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy
from prometheus_client import CollectorRegistry

from specproxy.config.schema import HealthConfig, UpstreamConfig
from specproxy.errors import ConfigError, Draining, InvalidRequest, QueueFull, RequestError
from specproxy.server.passthrough import Forwarding
from specproxy.server.upstream_metrics import UpstreamMetrics
from specproxy.upstream.address import address_of
from specproxy.upstream.chain import Link, first_answer
from specproxy.upstream.counters import SpecCounts, from_answer, from_vllm
from specproxy.upstream.errors import is_context_too_long, message_of
from specproxy.upstream.events import MAX_HELD, EventCutter, StreamWatch
from specproxy.upstream.headers import request_headers, response_headers, retry_after_s
from specproxy.upstream.pool import Upstreams
from tests.upstream.scripted import DONE, GOOD, USAGE, event


@given(st.lists(st.integers(0, len(GOOD)), max_size=20))
def test_cut_anywhere_a_stream_comes_out_whole_and_in_whole_events(places: list[int]) -> None:
    """Every piece but the last ends where an event does."""
    cutter = EventCutter()
    ends = [0, *sorted(places), len(GOOD)]
    pieces = [cutter.feed(GOOD[a:b]) for a, b in itertools.pairwise(ends)]
    assert b"".join([*pieces, cutter.rest()]) == GOOD
    assert all(piece.endswith((b"\n\n", b"\r\n\r\n")) for piece in pieces if piece)


def test_an_event_without_end_does_not_fill_the_memory() -> None:
    """It goes on in pieces."""
    cutter = EventCutter()
    assert cutter.feed(b"x" * MAX_HELD) == b""
    assert len(cutter.feed(b"x")) == MAX_HELD + 1


def test_a_stream_is_whole_with_done_or_a_finish_reason_and_not_by_its_text() -> None:
    """Generated text that looks like an end is none."""
    ends = [DONE, event("", finish="length"), b'data: {"error":{"message":"x"}}\n\n']
    for last, whole in [*((end, True) for end in ends), (event("a"), False)]:
        watch = StreamWatch()
        watch.see(event('a \\"finish_reason\\":\\"stop\\" data: [DO'))
        watch.see(last)
        assert watch.whole is whole


def test_last_words_are_those_of_the_last_events() -> None:
    """Usage, wherever the network cut."""
    watch = StreamWatch()
    for piece in (event("a"), event("", finish="stop"), USAGE, DONE):
        watch.see(piece)
    assert watch.last_words()["usage"]["completion_tokens"] == 3
    assert watch.finish_reasons == ["stop"]


def proxied(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    """Headers as aiohttp gives them."""
    return CIMultiDictProxy(CIMultiDict(pairs))


def test_headers_of_a_hop_stay_there() -> None:
    """The known ones, and those that Connection names, in both directions."""
    hop = [("Connection", "close, X-Mine"), ("x-mine", "1"), ("TE", "trailers"), ("Upgrade", "h2c"), ("Accept", "a")]
    assert dict(request_headers(proxied(*hop), "id", "")) == {
        "Accept": "a",
        "Accept-Encoding": "identity",
        "x-request-id": "id",
    }
    assert response_headers(proxied(*hop, ("Transfer-Encoding", "chunked"), ("Location", "/"))) == (("Accept", "a"),)


def test_a_header_that_cannot_be_written_again_is_left_out() -> None:
    """Bytes that are no UTF-8; everything else goes on as it is."""
    odd = proxied(("x-bad", b"\xe9".decode(errors="surrogateescape")), ("x-good", "é"))
    assert response_headers(odd) == (("x-good", "é"),)
    assert "x-bad" not in request_headers(odd, "id", "")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "9"}, 9.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_in_every_form(headers: dict[str, str], expected: float | None) -> None:
    """Milliseconds before seconds, dates, and nothing for what is none."""
    assert retry_after_s(proxied(*headers.items())) == expected


VLLM = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="m"} 10.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="m"} 5.0
vllm:spec_decode_num_drafts_created{engine="0",model_name="m"} 1.7e+09
vllm:spec_decode_num_draft_tokens_total{engine="0",model_name="m"} 45.0
vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="m"} 21.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="1"} 9.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="0",model_name="m",position="0"} 12.0
vllm:spec_decode_num_accepted_tokens_per_pos_total{engine="1",model_name="m",position="0"} 1.0
vllm:num_requests_running{engine="0",model_name="m"} 1.0
"""


def test_vllms_counters_are_summed_over_its_engines() -> None:
    """Times of creation are none of them; an engine that does not speculate has none."""
    assert from_vllm(VLLM) == SpecCounts(drafts=15, drafted=45, accepted=21, accepted_at=[13, 9])
    assert from_vllm("vllm:num_requests_running 1\n") is None


def test_counts_of_an_answer_are_read_as_far_as_they_are_there() -> None:
    """SGLang's over all choices; anything of another form is nothing."""
    info = {"spec_verify_ct": 4, "spec_accept_length": 2.5}
    assert from_answer({"choices": [{"meta_info": info}, {"meta_info": info}]}) == SpecCounts(drafts=8, accepted=12)
    assert from_answer({"timings": {"draft_n": 7}}) == SpecCounts(drafted=7)
    for nothing in ({}, {"timings": {"prompt_n": 3}}, {"choices": None, "meta_info": []}):
        assert from_answer(nothing) is None


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'{"error":{"message":"a"}}', "a"),
        (b'{"detail":"b"}', "b"),
        (b'{"object":"error","message":"c","code":40303}', "c"),
        (b'{"detail":[{"loc":["body"]}]}', '[{"loc":["body"]}]'),
        (b'{"error":"d"}', "d"),
        (b"<html>e\xff", "<html>e�"),
    ],
)
def test_an_error_body_of_any_form_says_something(body: bytes, text: str) -> None:
    """OpenAI's, FastAPI's, the legacy one, and text."""
    assert message_of(body) == text


def test_a_context_that_is_too_short_is_told_from_other_refusals() -> None:
    """By OpenAI's code or by words, and only where it is an error of the client."""
    assert is_context_too_long(400, b'{"error":{"message":"x","code":"context_length_exceeded"}}')
    assert is_context_too_long(400, b'{"object":"error","message":"This model\'s maximum context length is 5 tokens"}')
    assert is_context_too_long(400, b'{"error":{"message":"the request exceeds the available context size"}}')
    assert not is_context_too_long(400, b'{"error":{"message":"bad tool","code":null}}')
    assert not is_context_too_long(500, b"context length")


def test_addresses_are_what_openai_clients_take() -> None:
    """A bare host gets /v1; health stands below the root of the server."""
    bare = address_of("a", UpstreamConfig(url="http://h:1", kind="vllm"))
    assert (bare.api, str(bare.health_url())) == ("http://h:1/v1", "http://h:1/health")
    deep = address_of("a", UpstreamConfig(url="https://h/team/v1/", health=HealthConfig(path="/up")))
    assert (deep.api, str(deep.health_url())) == ("https://h/team/v1", "https://h/team/up")
    assert address_of("a", UpstreamConfig(url="https://api.openai.com/v1")).health == ""
    assert str(deep.url("/x?a=%2F")) == "https://h/team/v1/x?a=%2F"


@pytest.mark.parametrize("url", ["http://u:p@h/v1", "http://h/v1?key=1", "http://h:x/v1"])
def test_an_address_with_a_secret_or_without_sense_is_refused(url: str) -> None:
    """Secrets have their place in the environment; the name of the setting is said, and no secret."""
    with pytest.raises(ConfigError, match=r"upstreams\.a\.url: ") as refused:
        address_of("a", UpstreamConfig(url=url))
    assert "u:p" not in str(refused.value)


async def test_a_chain_stops_at_the_first_answer_and_at_errors_of_the_client() -> None:
    """Who was asked, who failed before, and what is told of a fallback."""
    asked: list[tuple[str, bool, int]] = []
    fallbacks: list[tuple[str, str]] = []

    def link(name: str, error: RequestError | None = None) -> Link[str]:
        async def answer(more: bool, failed: object) -> str:
            asked.append((name, more, len(failed)))  # type: ignore[arg-type]
            if error is not None:
                raise error
            return name

        return Link(name, answer)

    def note(backend: str, following: str, error: RequestError) -> None:
        fallbacks.append((backend, following))

    links = [link("a", QueueFull("full")), link("b"), link("c")]
    assert await first_answer(links, note) == "b"
    assert asked == [("a", True, 0), ("b", True, 1)]
    assert fallbacks == [("a", "b")]
    with pytest.raises(InvalidRequest):
        await first_answer([link("a", InvalidRequest("bad")), link("b")], note)
    with pytest.raises(QueueFull, match="full") as last:
        await first_answer([link("a", QueueFull("full a")), link("b", QueueFull("full b"))], note)
    assert last.value.message == "full b; before it, a: full a"


async def test_a_drain_ends_an_exchange_with_an_error_of_its_own() -> None:
    """While it runs; one that is over is no longer there to be ended."""
    forwarding = Forwarding.to(Upstreams({}, {}, UpstreamMetrics(CollectorRegistry())))
    with forwarding.cutting(None) as cut:
        asyncio.get_running_loop().call_soon(lambda: [one.fail(Draining("gone")) for one in forwarding.running])
        with pytest.raises(TimeoutError):
            async with cut.timeout:
                await asyncio.sleep(10)
    assert isinstance(cut.error, Draining)
    assert not forwarding.running
