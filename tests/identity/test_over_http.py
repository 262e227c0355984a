"""Identity over HTTP: against a real server nothing but the speed depends on how an answer came about.

Every request is first answered plainly, alone and whole, by one server; then under a case of a covering array, by
others. What both say is compared to the last field. The cases that share a server run at the same time, so that one
batch holds rows of every drafter, K and sampling.
"""

from __future__ import annotations

import asyncio
import os
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.support.covering import pairwise
from tests.support.exchange import Reply, exchange
from tests.support.identity import SAMPLING, accepted_lengths
from tests.support.prompts import Prompt
from tests.support.servers import every_drafter

pytestmark = pytest.mark.timeout(300)

DRAFTERS = ("off", "ngram", "prediction", "draft_model", "replay")
SAMPLINGS = SAMPLING | {"stop": {"stop": ["\n", " the"], "min_tokens": 4}}
PAGE = 64

AXES: dict[str, Sequence[Any]] = {
    "endpoint": ["chat", "completions"],
    "stream": [False, True],
    "temperature": [0.0, 0.8],
    "drafter": DRAFTERS,
    "k": range(1, 9),
    "load": ["alone", "eight", "short of memory"],
    "cache": ["miss", "hit"],
    "sampling": list(SAMPLINGS),
    "n": [1, 2],
}
CASES = pairwise(AXES)
MAX_TOKENS = 24

LONG = [
    {
        "endpoint": ("chat", "completions")[i % 2],
        "stream": i % 4 != 3,
        "temperature": (0.8, 0.0)[i % 3 == 2],
        "drafter": DRAFTERS[i % len(DRAFTERS)],
        "k": 2 + i % 5,
        "cache": "miss",
        "sampling": ("plain", "penalties", "top_p")[i % 3],
        "n": 1 + i % 2,
    }
    for i in range(8)
]
"""Cases in flight together, for longer, when the engine is killed and when pages run out."""

SHORT = ("--set", "model.max_model_len=512", "--set", "model.kv_memory=3600KB")
"""Nine pages of 64 tokens, where one sequence may need eight: of several that grow, some must give way."""


@dataclass
class Ask:
    """A case with one prompt. ``body`` is the same whoever answers, but for streaming and the salt of its pages."""

    case: dict[str, Any]
    body: dict[str, Any]
    salt: str

    @property
    def wish(self) -> str:
        """The header that chooses a drafter."""
        return "off" if self.case["drafter"] == "off" else f"{self.case['drafter']};k={self.case['k']}"

    async def plainly(self, client: httpx.AsyncClient) -> Reply:
        """Without speculation, not streamed."""
        return await exchange(client, self.case["endpoint"], self.body | {"cache_salt": f"plain {self.salt}"}, "off")

    async def as_the_case_says(self, client: httpx.AsyncClient, on_chunk: Callable[[], None] | None = None) -> Reply:
        """Under the case's conditions; where the cache shall hit, the prompt is computed once before."""
        body = self.body | {"cache_salt": self.salt}
        if self.case["cache"] == "hit":
            await exchange(client, self.case["endpoint"], body | {"max_tokens": 1, "min_tokens": 0, "n": 1}, "off")
        if self.case["stream"]:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return await exchange(client, self.case["endpoint"], body, self.wish, on_chunk)


@dataclass
class Answered:
    """An ask, what was said plainly, and what was said under its case."""

    ask: Ask
    plain: Reply
    reply: Reply


def make_ask(case: dict[str, Any], prompt: Prompt, number: str, **fields: Any) -> Ask:
    """The request of a case for one prompt; the prediction is the reference answer, or a piece of the prompt."""
    body = {
        "model": "house",
        "max_tokens": MAX_TOKENS,
        "temperature": case["temperature"],
        "seed": zlib.crc32(prompt["id"].encode()),
        "n": case["n"],
        "return_token_ids": True,
        "prediction": {"type": "content", "content": prompt.get("reference") or prompt["messages"][-1]["content"]},
        **SAMPLINGS[case["sampling"]],
        **fields,
    }
    if case["endpoint"] == "chat":
        body |= {"messages": prompt["messages"], "logprobs": True, "top_logprobs": 2}
    else:
        body |= {"prompt": prompt["ids"], "logprobs": 2}
    return Ask(case, body, f"{number} {prompt['id']}")


async def answer_all(url: str, asks: Sequence[Ask], together: int, *, plainly: bool = False) -> list[Reply]:
    """Replies in order, with ``together`` requests in flight."""
    limit = asyncio.Semaphore(together)

    async def one(client: httpx.AsyncClient, ask: Ask) -> Reply:
        async with limit:
            return await (ask.plainly(client) if plainly else ask.as_the_case_says(client))

    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await asyncio.gather(*(one(client, ask) for ask in asks))


@dataclass
class Experiment:
    """All that was asked and said. ``roomy`` and ``short``: the servers with every drafter."""

    answered: list[Answered]
    long: list[tuple[Ask, Reply]]
    roomy: Any
    short: Any

    def of(self, **values: Any) -> list[Answered]:
        """Those whose case has all these values."""
        return [a for a in self.answered if all(a.ask.case[axis] == value for axis, value in values.items())]


@pytest.fixture(scope="module")
def experiment(
    server: Any,
    start_server: Callable[..., Any],
    eventually: Callable[..., None],
    mini: list[Prompt],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Experiment]:
    """Plain answers first, as the replay drafter's scripts are made of them; then every case."""
    asks = [make_ask(case, mini[number * 11 % len(mini)], f"case {number}") for number, case in enumerate(CASES)]
    long = [
        make_ask(case, mini[(7 * i) % len(mini)], f"long {i}", max_tokens=80, ignore_eos=True)
        for i, case in enumerate(LONG)
    ]
    plain = asyncio.run(answer_all(server.url, asks + long, 1, plainly=True))
    said = [(r.visible["prompt_token_ids"], c["token_ids"]) for r in plain for c in r.visible["choices"]]
    flags = every_drafter(tmp_path_factory.mktemp("identity"), said)
    roomy, short = (start_server(*flags, *more, until_ready=False) for more in ((), SHORT))
    replies: dict[str, Reply] = {}
    for load, where, together in (("alone", roomy, 1), ("eight", roomy, 8), ("short of memory", short, 8)):
        eventually(lambda one=where: one.get("/ready").status_code == 200, 90, "readiness")
        mine = [ask for ask in asks if ask.case["load"] == load]
        found = asyncio.run(answer_all(where.url, mine, together))
        replies |= {ask.salt: reply for ask, reply in zip(mine, found, strict=True)}
    yield Experiment(
        [Answered(ask, before, replies[ask.salt]) for ask, before in zip(asks, plain, strict=False)],
        list(zip(long, plain[len(asks) :], strict=True)),
        roomy,
        short,
    )
    roomy.stop()
    short.stop()


@pytest.mark.parametrize("number", range(len(CASES)))
def test_pairwise_identity_over_http(experiment: Experiment, number: int) -> None:
    """Token ids, text, finish reasons, logprobs and usage are those of the plain answer, streamed or not."""
    [one] = [a for a in experiment.answered if a.ask.case is CASES[number]]
    assert one.reply.visible == one.plain.visible, one.ask


def test_every_request_was_answered_as_it_wished(experiment: Experiment) -> None:
    """The headers name the drafter and K that the case asks for, and a bitwise rung."""
    for one in experiment.answered:
        drafter, headers = one.ask.case["drafter"], one.reply.headers
        assert headers["x-specproxy-drafter"] == drafter
        assert headers["x-specproxy-k"] == ("0" if drafter == "off" else str(one.ask.case["k"]))
        assert headers["x-specproxy-exactness"].startswith("bitwise")
        assert one.plain.headers["x-specproxy-drafter"] == "off"


def test_drafts_were_made_and_accepted(experiment: Experiment) -> None:
    """By every drafter and by none where it is off; of the replay drafter's every number up to 5 was accepted."""
    for drafter in DRAFTERS:
        said = [one.reply.ours for one in experiment.of(drafter=drafter)]
        drafted, accepted = sum(s["drafted"] for s in said), sum(s["accepted"] for s in said)
        assert (accepted > 0, drafted > accepted) == (drafter != "off", drafter != "off"), drafter
    replayed = [counts for one in experiment.of(drafter="replay") for counts in one.reply.ours["drafters"]]
    at = [sum(c["accepted_at"][i] for c in replayed if i < len(c["accepted_at"])) for i in range(8)]
    assert accepted_lengths(sum(c["steps"] for c in replayed), at) >= set(range(6))


def test_the_cache_hit_where_it_should(experiment: Experiment) -> None:
    """A prompt that was computed before comes from its full pages but for the last token; a new one does not."""
    for load in ("alone", "eight"):
        for one in experiment.of(load=load, cache="miss"):
            assert one.reply.cached_tokens == 0
        for one in experiment.of(load=load, cache="hit"):
            assert one.reply.cached_tokens == (len(one.reply.visible["prompt_token_ids"]) - 1) // PAGE * PAGE
    assert any(one.reply.cached_tokens for one in experiment.of(load="eight", cache="hit"))


async def answer_together(url: str, asks: Sequence[Ask], on_chunk: Callable[[], None] | None = None) -> list[Reply]:
    """All at once; ``on_chunk`` hears of every chunk of every stream."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as client:
        return await asyncio.gather(*(ask.as_the_case_says(client, on_chunk) for ask in asks))


def test_preemption_changes_nothing(experiment: Experiment, eventually: Callable[..., None]) -> None:
    """Sequences that outgrow the pool give way to each other, again and again: the same answers."""
    short = experiment.short
    assert short.metric("specproxy_kv_pages", state="total") == 9
    before = short.metric("specproxy_preemptions_total")
    replies = asyncio.run(answer_together(short.url, [ask for ask, _ in experiment.long]))
    for reply, (ask, plain) in zip(replies, experiment.long, strict=True):
        assert reply.visible == plain.visible, ask
    eventually(lambda: short.metric("specproxy_preemptions_total") >= before + 4, 2, "preemption")
    assert experiment.roomy.metric("specproxy_preemptions_total") == 0


def test_an_engine_killed_in_mid_run_changes_nothing(experiment: Experiment) -> None:
    """kill -9 with eight requests in flight, of all drafters, streamed and not: a pause, and the same answers."""
    roomy = experiment.roomy
    chunks, engine = iter(range(10**9)), roomy.engine_pid
    starts = roomy.metric("specproxy_engine_starts_total")

    def kill_once() -> None:
        if next(chunks) == 40:
            os.kill(engine, signal.SIGKILL)

    replies = asyncio.run(answer_together(roomy.url, [ask for ask, _ in experiment.long], kill_once))
    for reply, (ask, plain) in zip(replies, experiment.long, strict=True):
        assert reply.visible == plain.visible, ask
    assert roomy.metric("specproxy_engine_starts_total") == starts + 1
    assert roomy.events("engine died")[0]["in_flight"] >= 4
