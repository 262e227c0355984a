"""One run of the bench: where the servers come from, who answers what, what is known about it all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct

from specproxy.bench.arms import Arm
from specproxy.bench.client import Answer, Client, make_session, readiness, served_model
from specproxy.bench.machine import describe_machine, describe_software
from specproxy.bench.peers import Peer
from specproxy.bench.policies import derive
from specproxy.bench.records import Record
from specproxy.bench.runner import Block, Measured, make_blocks, measure
from specproxy.bench.server import own_server
from specproxy.config.schema import ModelConfig, StartConfig

WARM_UP_TOKENS = 32
BUSY = 0.3
"""Load per core before the run above which the numbers come with a warning."""


class Plan(Struct, frozen=True, kw_only=True):
    """What is measured. ``limit``: prompts per category; ``max_tokens`` of every answer; ``greedy`` overrides the
    records' temperatures."""

    records: list[Record]
    arms: list[Arm]
    concurrency: int = 1
    repeats: int = 1
    max_tokens: int = 256
    greedy: bool = False


class Outcome(Struct, frozen=True):
    """All measurements, and the facts that belong beside them."""

    results: list[Measured]
    facts: dict[str, Any]


class Answerers(Struct, frozen=True):
    """Who answers: a server (``bitwise``), perhaps one that may be numeric, and for arms that are not ours another
    library each."""

    bitwise: Client
    numeric: Client | None
    peers: Mapping[str, Peer]
    facts: dict[str, Any]

    async def answer(self, plan: Plan, record: Record, arm: Arm, repeat: int) -> Answer:
        """One answer of ``record`` by ``arm``."""
        if arm.peer:
            if arm.name not in self.peers:
                return Answer(error=f"nothing is loaded that answers as {arm.name}")
            return await self.peers[arm.name].answer(record, arm, max_tokens=plan.max_tokens)
        client = self.numeric if arm.numeric else self.bitwise
        if client is None:
            return Answer(error="no numeric server runs")
        salt = f"{arm.name}#{repeat}"
        return await client.answer(record, arm, max_tokens=plan.max_tokens, salt=salt, greedy=plan.greedy)


@asynccontextmanager
async def running_server(plan: Plan, url: str, api_key: str | None) -> AsyncIterator[Answerers]:
    """Measure a server that runs already."""
    facts = surroundings()
    async with make_session(api_key, plan.concurrency) as session:
        client, server = await _client(session, url, own=False)
        yield Answerers(client, None, {}, facts | {"server": {"given": server}})


@asynccontextmanager
async def own_servers(
    plan: Plan, config: StartConfig, peers: Mapping[str, Peer], note: Callable[[str], None]
) -> AsyncIterator[Answerers]:
    """Start what the plan needs: one server, and a numeric one where an arm asks for it. ``note`` is told."""
    facts = surroundings()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(make_session(None, plan.concurrency))
        root = Path(stack.enter_context(TemporaryDirectory(prefix="specproxy-bench-")))
        servers: dict[str, Any] = {}
        clients: dict[str, Client] = {}
        for kind in ["bitwise", "numeric"] if any(arm.numeric for arm in plan.arms) else ["bitwise"]:
            note(f"starting the {kind} server")
            work = root / kind
            policies = work / "policies"
            policies.mkdir(parents=True)
            derive(Path(config.policies), policies, plan.arms, exactness="numeric" if kind == "numeric" else None)
            wanted = _numeric(config) if kind == "numeric" else config
            server = await stack.enter_async_context(own_server(wanted, policies, work))
            clients[kind], servers[kind] = await _client(session, server.url, own=True)
            servers[kind]["ready_s"] = round(server.ready_s, 2)
        yield Answerers(clients["bitwise"], clients.get("numeric"), peers, facts | {"server": servers})


async def run(plan: Plan, answerers: Answerers, done: Callable[[Measured], None]) -> Outcome:
    """Warm every arm up, then measure; ``done`` hears of each block."""

    async def answer(record: Record, arm: Arm, repeat: int) -> Answer:
        return await answerers.answer(plan, record, arm, repeat)

    await warm_up(plan, answerers)
    return Outcome(await measure(blocks(plan), plan.arms, answer, done), answerers.facts)


def surroundings() -> dict[str, Any]:
    """Machine and software as they are before anything is started."""
    return {"machine": describe_machine(), "software": describe_software()}


def blocks(plan: Plan) -> list[Block]:
    """The plan's blocks of prompts."""
    return make_blocks(plan.records, plan.concurrency, plan.repeats)


async def warm_up(plan: Plan, answerers: Answerers) -> None:
    """A short answer of each category by each arm, unmeasured: first calls allocate, compile and import."""
    short = msgspec.structs.replace(plan, max_tokens=min(WARM_UP_TOKENS, plan.max_tokens))
    first = {record.category: record for record in reversed(plan.records)}
    for arm in plan.arms:
        for record in first.values():
            await answerers.answer(short, record, arm, -1)


def method(plan: Plan) -> str:
    """How the numbers of a run were made."""
    return (
        f"{len(plan.records)} prompts, {plan.concurrency} at a time, {plan.repeats} repeat(s), at most "
        f"{plan.max_tokens} tokens, arms of a prompt in alternating order; ratio: geometric mean over prompts against "
        "the faster plain arm; interval: 95 % bootstrap over prompts; len: tokens per target step"
    )


def notes(facts: dict[str, Any]) -> list[str]:
    """What the numbers of a run were made on."""
    lines = machine_notes(facts)
    for kind, said in facts["server"].items():
        numerics = said.get("engine", {}).get("numerics")
        if numerics:
            lines.append(f"{kind} server: " + ", ".join(f"{key} {value}" for key, value in numerics.items() if value))
    return lines


def machine_notes(facts: dict[str, Any]) -> list[str]:
    """Hardware and software, and whether they were free."""
    machine, software = facts["machine"], facts["software"]
    lines = [
        machine["gpus"],
        "{cpu}, {cores} usable cores, {memory_gib} GiB, {system}, load {load_1m} before the run".format(**machine),
        ", ".join(f"{name} {version}" for name, version in software.items() if version),
    ]
    lines = [line for line in lines if line]
    if machine["load_1m"] > BUSY * machine["cores"]:
        lines.append("the machine was busy before the run: do not trust these numbers")
    return lines


def is_exact(facts: dict[str, Any]) -> bool:
    """Whether the measured server (not the numeric one beside it) claims bitwise equality; one that claims nothing
    does not."""
    said = facts["server"].get("bitwise") or facts["server"].get("given") or {}
    return str(said.get("exactness") or "").startswith("bitwise")


async def _client(session: aiohttp.ClientSession, url: str, *, own: bool) -> tuple[Client, dict[str, Any]]:
    model = await served_model(session, url)
    return Client(session, url, model, own=own), {"url": url, "model": model, **await readiness(session, url)}


def _numeric(config: StartConfig) -> StartConfig:
    model: ModelConfig = msgspec.structs.replace(config.model, exactness="numeric")
    return msgspec.structs.replace(config, model=model)
