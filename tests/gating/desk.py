"""A gate without an engine: real store, real sets, a clock that tests turn, and evidence in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from specproxy.policy.catalogue import Catalogue, DrafterSpec
from specproxy.policy.facts import Facts, extract_facts
from specproxy.policy.policy import PolicySet
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.book import Book, Tracked
from specproxy.server.gating.decider import Decider
from specproxy.server.gating.intake import WATCHER, Intake
from specproxy.server.gating.moves import Moves
from specproxy.server.gating.switches import Switches
from specproxy.vocabulary import Decision

CATALOGUE = Catalogue(
    drafters=(DrafterSpec("ngram", "ngram", 63, None, "n1"), DrafterSpec("model", "draft_model", 15, None, "m1"))
)


@dataclass
class Clock:
    """Unix seconds, as a test says."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        """The time."""
        self.now += 0.001
        return self.now


@dataclass
class Desk:
    """One life of a server's gate, over ``folder`` with its policies and its state."""

    folder: Path
    clock: Clock = field(default_factory=Clock)
    catalogue: Catalogue = CATALOGUE

    def read(self, text: str) -> PolicySet:
        """A policy set of one file."""
        policies = self.folder / "policies"
        policies.mkdir(exist_ok=True)
        (policies / "all.yaml").write_text(text)
        return PolicySet.load(policies, self.catalogue)

    async def open(self, text: str) -> Desk:
        """Start over these policy files."""
        policies = self.read(text)
        self.backend = EngineBackend()
        self.book = Book(policies, self.clock)
        self.intake, self.decider = Intake(self.book), Decider(self.book)
        self.moves, self.switches = Moves(self.book, self.intake), Switches(self.book, self.backend)
        await self.book.ledger.open(self.folder / "gate.db")
        await self.switches.load()
        await self.intake.open()
        return self

    async def edit(self, text: str, recent: tuple[Facts, ...] = ()) -> None:
        """The files say something else now."""
        await self.intake.take(self.read(text), recent, WATCHER)

    async def close(self) -> None:
        """The server ends."""
        await self.book.ledger.close()

    async def phases(self, route: str = "default") -> list[str]:
        """Phases of the route's revisions as stored, oldest first."""
        return [state.phase for state in await self.book.ledger.call(lambda store: store.states(route))]

    def member(self, route: str = "default") -> Tracked:
        """The route's candidate."""
        if self.book.change is None:
            raise AssertionError("there is no candidate")
        return self.book.change.members[route]

    def decide(self, user: str = "someone", **body: object) -> Decision:
        """What holds for a request of this conversation."""
        return self.decider.decide(facts(user, **body)).decision


def facts(user: str = "someone", **body: object) -> Facts:
    """A request of the conversation ``user``."""
    given = {"messages": [{"role": "user", "content": user}], "prompt_cache_key": user, **body}
    return extract_facts("/v1/chat/completions", {}, given)


def prove(member: Tracked, *, gain: float = 0.3, shadow: int = 0, live: int = 0, clean: int = 0) -> None:
    """Evidence in numbers: pairs whose log speed ratio is ``gain``, all else equal; clean audits."""
    evidence = member.evidence
    for seen, count in ((evidence.shadow, shadow), (evidence.live, live)):
        for number in range(count):
            speed = gain + 0.02 * math.sin(number)
            seen.add_speeds(100 * math.exp(speed), 100)
            seen.add_costs(math.exp(-gain), 1.0)
            for name in ("ttft_p95", "itl_p95"):
                seen.tails[name].add_pair(0.01 * math.exp(-gain) * (1 + 0.01 * math.sin(number)), 0.01)
            seen.count(candidate=True)
            seen.count(candidate=False)
    for _ in range(clean):
        evidence.mismatches.add(member.rules.mismatch, hard=False)


def policy(routes: str, *, mode: str = "auto", gate: str = "", hold_out: float = 0.0) -> str:
    """A policy file whose routes have this gate."""
    return (
        f"version: 1\ndefaults:\n  override: true\n  hold_out: {hold_out}\n"
        f"  gate: {{mode: {mode}, min_samples: 4, canary: [0.2, 0.5]{gate}}}\nroutes:\n{routes}"
    )


def only(speculate: str) -> str:
    """One route."""
    return f"  - {{name: default, speculate: {speculate}}}\n"
