"""People's way into the gate: what the admin API asks, answered from a running server."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Any

from specproxy.bundle import AuditBundle
from specproxy.errors import ConfigError, InvalidRequest, NotFound, StaleWrite
from specproxy.gate.kills import Kill
from specproxy.gate.orders import Order
from specproxy.gate.states import GateState
from specproxy.policy.explain import Explanation, explain
from specproxy.policy.plan import Plan, plan
from specproxy.policy.policy import PolicySet
from specproxy.policy.request_file import as_envelope
from specproxy.server.admin.operator import Log, RevisionInfo, Revisions, Status, Switch, Validation, etag_of
from specproxy.server.gating.book import mode_of, rules_of
from specproxy.server.gating.drafters import DrafterDesk
from specproxy.server.gating.gate import Gate
from specproxy.server.gating.standing import log_entry, server_status, switch_of


class GateOperator:
    """The admin API's ``Operator`` over a running gate. ``state``: the file of the gate's state."""

    def __init__(self, gate: Gate, state: Path | None = None) -> None:
        self._gate = gate
        self.drafters = DrafterDesk(gate, state)

    async def status(self) -> Status:
        """As the protocol says."""
        return server_status(self._gate)

    async def revisions(self, route: str) -> Revisions:
        """As the protocol says."""
        states = await self._states(route)
        return Revisions(route, [await self._info(state) for state in states])

    async def log(self, after: int, limit: int) -> Log:
        """As the protocol says."""
        entries = await self._gate.book.ledger.call(lambda store: store.log(after=after, limit=limit))
        return Log([log_entry(entry) for entry in entries], self._gate.book.log_size)

    async def validate(self, files: Mapping[str, str]) -> Validation:
        """As the protocol says."""
        found, problems, warnings = await asyncio.to_thread(self._read, files)
        if found is None:
            return Validation(False, problems, warnings, None, [])
        return Validation(True, [], warnings, found.hash, plan([], self._gate.book.serving, found).routes)

    async def explain(self, request: Mapping[str, Any]) -> Explanation:
        """As the protocol says."""
        try:
            facts = as_envelope(request, "request").facts()
        except ConfigError as error:
            raise InvalidRequest(str(error), param="request") from None
        return explain(self._gate.book.serving, facts)

    async def plan(self, files: Mapping[str, str]) -> Plan:
        """As the protocol says."""
        found, problems, _ = await asyncio.to_thread(self._read, files)
        if found is None:
            raise InvalidRequest("\n".join(problems), param="files")
        serving, recent = self._gate.book.serving, list(self._gate.traffic.recent)
        return await asyncio.to_thread(plan, recent, serving, found)

    async def order(
        self, route: str, action: Order, revision: str, *, reason: str, actor: str, etag: str, force: bool
    ) -> RevisionInfo:
        """As the protocol says."""
        book = self._gate.book
        async with book.lock:
            known = {state.revision: state for state in await self._states(route)}
            state = known.get(revision)
            if state is not None and etag_of(state) != etag:
                raise StaleWrite(
                    f"{route} {revision[:12]} is at {etag_of(state)} ({state.phase}) by now, not {etag}; read it again"
                )
            version = None if state is None else state.version
            after = await self._gate.moves.order(
                action, route, revision, reason=reason, actor=actor, version=version, force=force
            )
        self._gate.nudge()
        return await self._info(after)

    async def kill(self, route: str | None, *, reason: str, actor: str) -> Switch:
        """As the protocol says."""
        if route is not None:
            await self._states(route)
        return switch_of(await self._gate.switches.kill(route, None, reason=reason, actor=actor))

    async def lift(self, route: str | None, *, reason: str, actor: str) -> Switch:
        """As the protocol says."""
        await self._gate.switches.lift(route, reason=reason, actor=actor)
        return switch_of(Kill(route, None, reason, actor, self._gate.book.clock()), killed=False)

    async def changes(self) -> AsyncGenerator[None, None]:
        """As the protocol says."""
        event = self._gate.book.listen()
        try:
            yield
            while True:
                await event.wait()
                event.clear()
                yield
        finally:
            self._gate.book.ignore(event)

    async def bundle(self, id: str) -> AuditBundle:  # noqa: A002 - the API's word for it
        """As the protocol says."""
        kept = self._gate.audits.ring.get(id)
        if kept is None:
            raise NotFound(f"no bundle {id[:80]} is in memory; the ring keeps the last ones only")
        return kept.audited.bundle

    async def _states(self, route: str) -> list[GateState]:
        """Raises NotFound."""
        states = await self._gate.book.ledger.call(lambda store: store.states(route))
        if not states:
            known = ", ".join(self._gate.book.active)
            raise NotFound(f"there is no route {route[:80]}; there are {known}")
        return states

    async def _info(self, state: GateState) -> RevisionInfo:
        book = self._gate.book
        tracked = book.find(state.route, state.revision)
        share = 0.0
        if tracked is not None:
            share = state.share(tracked.rules)
        elif state.phase in ("active", "canary"):
            content = await book.ledger.call(lambda store: store.revision(state.route, state.revision))
            share = state.share(rules_of(content, mode_of(content)))
        return RevisionInfo(state.revision, state.phase, etag_of(state), state.created, state.entered, share=share)

    def _read(self, files: Mapping[str, str]) -> tuple[PolicySet | None, list[str], list[str]]:
        """A set from texts: the set where it is valid, its problems, its warnings. Raises InvalidRequest for names that
        are none of policy files."""
        for name in files:
            if Path(name).name != name or not name.endswith(".yaml"):
                raise InvalidRequest(f"{name[:80]} is no name of a policy file; expected NAME.yaml", param="files")
        with tempfile.TemporaryDirectory(prefix="specproxy-policies-") as folder:
            for name, text in files.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            policies, findings = PolicySet.read(Path(folder), self._gate.book.disk.catalogue)
        errors, warnings = (
            [str(problem).removeprefix(f"{folder}/") for problem in kind]
            for kind in (findings.errors, findings.warnings)
        )
        return policies, errors, warnings
