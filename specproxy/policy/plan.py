"""Plan: which requests a candidate set would treat otherwise than the active one does, and whose traffic that moves.

A pure function of requests and two sets, so that a server and the command line find the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from msgspec import Struct

from specproxy.errors import InvalidRequest
from specproxy.policy.explain import shown_k
from specproxy.policy.facts import Facts
from specproxy.policy.policy import PolicySet

COMPARED = ("route", "drafters", "k", "tree", "exactness", "backend", "refused")
"""Fields of a Ruling, in the order in which they are shown."""


class Ruling(Struct, frozen=True):
    """What a set does with one request, as people read it. ``drafters``: ``auto`` with the names among which it
    chooses, names in order, or off; ``refused``: why the request is turned away, where it is."""

    route: str
    drafters: str
    k: str
    tree: str
    exactness: str
    backend: str
    refused: str | None = None


class Change(Struct, frozen=True):
    """A request that would be treated otherwise. ``request`` counts from 1 among those asked about; ``fields``: which
    of the ruling's differ."""

    request: int
    conversation: str
    fields: list[str]
    before: Ruling
    after: Ruling


class Flow(Struct, frozen=True):
    """So many requests would go to the route ``after`` instead of ``before``."""

    before: str
    after: str
    requests: int


class RouteChange(Struct, frozen=True):
    """A route that is not what it was. Revisions are 64 hex digits; ``None`` where the set has no such route."""

    route: str
    kind: Literal["added", "removed", "edited"]
    before: str | None
    after: str | None


class Plan(Struct, frozen=True):
    """What a candidate set would change. ``requests``: how many were asked about."""

    requests: int
    changes: list[Change]
    flows: list[Flow]
    routes: list[RouteChange]

    def touched(self) -> list[str]:
        """Every route that the gate has to treat as changed: those whose own text is, and those that would gain or lose
        requests though it is not."""
        names = [change.route for change in self.routes]
        return list(dict.fromkeys(names + [name for flow in self.flows for name in (flow.before, flow.after)]))


def plan(requests: Sequence[Facts], active: PolicySet, candidate: PolicySet) -> Plan:
    """Compare what both sets do with each of ``requests``, and the sets' routes with each other."""
    changes, flows = [], Counter[tuple[str, str]]()
    for number, facts in enumerate(requests, 1):
        before, after = ruling(active, facts), ruling(candidate, facts)
        fields = [name for name in COMPARED if getattr(before, name) != getattr(after, name)]
        if fields:
            changes.append(Change(number, facts.conversation, fields, before, after))
        if before.route != after.route:
            flows[before.route, after.route] += 1
    moved = [Flow(*ends, count) for ends, count in flows.most_common()]
    return Plan(len(requests), changes, moved, list(_routes(active, candidate)))


def ruling(policies: PolicySet, facts: Facts) -> Ruling:
    """What ``policies`` do with a request; of a refused one, what its route would have done."""
    refused = None
    try:
        decision = policies.decide(facts).decision
    except InvalidRequest as error:
        decision, refused = policies.route_for(facts)[0].decision, error.message
    names = ", ".join(decision.drafters) or "off"
    return Ruling(
        route=decision.route,
        drafters=f"auto: {names}" if decision.auto else names,
        k=shown_k(decision),
        tree=f"width {decision.tree_width}, nodes {decision.tree_nodes}",
        exactness=decision.exactness,
        backend=", ".join(decision.backends),
        refused=refused,
    )


def _routes(active: PolicySet, candidate: PolicySet) -> Iterator[RouteChange]:
    """Routes that are new, gone or edited, in the candidate's order, those that are gone last."""
    old = {route.name: route.decision.revision for route in active.routes}
    new = {route.name: route.decision.revision for route in candidate.routes}
    for name, revision in new.items():
        if name not in old:
            yield RouteChange(name, "added", None, revision)
        elif old[name] != revision:
            yield RouteChange(name, "edited", old[name], revision)
    for name, revision in old.items():
        if name not in new:
            yield RouteChange(name, "removed", revision, None)
