"""Drafters at run time, as the gate sees them: who holds one, and what follows from a change.

A new drafter serves no gated route by itself: a route that names it is an edit, and one whose drafters are ``auto``
a route with other drafters; both are candidates. So new weights come under a new name, a policy names that, and once
the gate has let it pass the old ones can go.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from specproxy.config.schema import DrafterConfig
from specproxy.errors import IllegalMove, NotFound, StaleWrite
from specproxy.gate.states import Move
from specproxy.policy.inherit import as_names, speculation
from specproxy.policy.schema import Settings
from specproxy.server.admin.drafter_operator import ABSENT, Drafters, DrafterStatus
from specproxy.server.gating.book import Tracked
from specproxy.server.gating.drafter_file import save_drafters
from specproxy.server.gating.gate import Gate
from specproxy.vocabulary import DrafterInfo


class DrafterDesk:
    """The admin API's ``DrafterOperator`` over a running gate. ``state``: the file of the gate's state, where that is
    kept."""

    def __init__(self, gate: Gate, state: Path | None = None) -> None:
        self._gate = gate
        self._state = state

    def listed(self) -> Drafters:
        """As the protocol says."""
        swaps, present = self._gate.backend.swaps, self._present()
        absent = [name for name in swaps.loaded if name not in present]
        return Drafters([self._status(name) for name in (*present, *absent)], swaps.doing)

    async def load(
        self, name: str, config: DrafterConfig, *, reason: str, actor: str, etag: str | None
    ) -> DrafterStatus:
        """As the protocol says."""
        present = self._present().get(name)
        if present is not None:
            self._check_free(
                name, "replace", "load the new weights under a new name, let the policy name that, and unload this one"
            )
        if etag is not None or present is not None:
            self._check(name, etag)
        await self._gate.backend.load_drafter(name, config)
        verb = "loaded" if present is None else "replaced"
        await self._changed(f"drafter {name} {verb} ({config.type}, {self._fingerprint(name)[:12]}): {reason}", actor)
        return self._status(name)

    async def unload(self, name: str, *, reason: str, actor: str, etag: str) -> Drafters:
        """As the protocol says."""
        swaps, present = self._gate.backend.swaps, self._present()
        if name not in present and name not in swaps.loaded:
            raise NotFound(f"there is no drafter {name[:80]}; there are {', '.join(present) or 'none'}")
        self._check(name, etag)
        self._check_free(name, "unload", "let the policy files name another one, or none, and wait for the gate")
        print_ = self._fingerprint(name)
        await self._gate.backend.unload_drafter(name)
        await self._changed(f"drafter {name} unloaded ({print_[:12] or 'it was not loaded'}): {reason}", actor)
        return self.listed()

    def _present(self) -> dict[str, DrafterInfo]:
        hello = self._gate.backend.hello
        return {} if hello is None else {info.name: info for info in hello.drafters}

    def _fingerprint(self, name: str) -> str:
        present = self._present().get(name)
        return "" if present is None else present.fingerprint

    def _etag(self, name: str) -> str:
        found = self._fingerprint(name)
        return f'"{found[:12]}"' if found else ABSENT

    def _check(self, name: str, etag: str | None) -> None:
        """Raises StaleWrite."""
        now = self._etag(name)
        if etag != now:
            what = "a drafter of that name is loaded" if etag is None else f"not {etag}"
            raise StaleWrite(f"drafter {name} is at {now} by now, {what}; read it again")

    def _check_free(self, name: str, verb: str, advice: str) -> None:
        """Raises IllegalMove where the text of a route names the drafter."""
        if holders := self._holders(name):
            raise IllegalMove(f"{verb} of drafter {name}: it is named by {', '.join(holders)}; {advice}")

    def _holders(self, name: str) -> list[str]:
        """Routes whose text names the drafter, with where that text stands."""
        gate = self._gate
        change = gate.book.change
        tracked = [*gate.book.active.values(), *(change.members.values() if change else ())]
        found = [_where(one) for one in tracked if name in _named(one.content.effective())]
        known = {one.route for one in tracked if name in _named(one.content.effective())}
        # An edit that the gate has not looked at yet, or has judged before.
        files = [route.name for route in gate.policies.current.routes if name in _named(route.effective.settings)]
        return [*found, *(f"route {route} (the policy files)" for route in files if route not in known)]

    def _status(self, name: str) -> DrafterStatus:
        backend, book = self._gate.backend, self._gate.book
        info, swaps = self._present().get(name), backend.swaps
        config = swaps.loaded[name].config if name in swaps.loaded else swaps.declared.get(name)
        return DrafterStatus(
            name=name,
            type=info.type if info is not None else "" if config is None else config.type,
            path="" if config is None else config.path,
            declared="at run time" if name in swaps.loaded else "by the start configuration",
            loaded=info is not None,
            fingerprint=self._fingerprint(name),
            etag=self._etag(name),
            max_k=None if info is None else info.max_k,
            window=None if info is None else info.window,
            weight_bytes=0 if info is None else info.weight_bytes,
            kv_bytes=0 if info is None else info.kv_bytes,
            routes=[r.name for r in book.serving.routes if info is not None and name in r.decision.drafters],
            named_by=self._holders(name),
            problem="" if info is not None else swaps.problems.get(name, "the engine has not loaded it"),
        )

    async def _changed(self, what: str, actor: str) -> None:
        """The engine has made a change: keep it, let policies name what there is now, and put it into the log of every
        route that serves."""
        gate, book = self._gate, self._gate.book
        async with book.lock:
            swaps = gate.backend.swaps
            if self._state is not None and book.ledger.kept:
                await asyncio.to_thread(save_drafters, self._state, dict(swaps.loaded))
            known = swaps.known(list(self._present().values()))
            gate.policies.use(gate.policies.current.catalogue.with_engine(known))
            await gate.refresh(gate.policies.current)
            await book.commit([(t, Move(t.state, t.state, what)) for t in book.active.values()], actor)
        gate.nudge()


def _named(settings: Settings) -> tuple[str, ...]:
    """Drafters that a route's text names."""
    return as_names(speculation(settings).drafters)


def _where(tracked: Tracked) -> str:
    phase = tracked.state.phase
    return f"route {tracked.route} ({phase if phase == 'active' else f'its candidate, {phase}'})"
