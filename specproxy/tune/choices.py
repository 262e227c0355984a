"""What can be chosen for a route: drafter, range of K, tree. One choice is one ``speculate`` mapping of a policy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from specproxy.bench.sweep import BRANCHING
from specproxy.policy.catalogue import AUTO, OFF
from specproxy.policy.explain import shown_k
from specproxy.vocabulary import MAX_TREE_NODES, Decision, DrafterInfo

TOPS = (2, 4, 8, 16)
"""Largest K of a range. The controller looks for the best below it, so that finer steps would measure noise."""

TREES = ((2, 4), (2, 8), (3, 4), (3, 8))
"""Width and levels of the trees; as many nodes as both allow."""

LEAST_NODES = 16
"""Nodes of a chain's tree: the policy language's default."""

NOT_TRIED = frozenset({"replay", "prediction", "grammar"})
"""Drafters that know the answer, or need the client to: their speed says nothing about others."""


class Choice(Struct, frozen=True):
    """One way to speculate. ``drafter``: a name, auto, or off. ``k_min`` to ``k_max`` tokens a row and step."""

    drafter: str
    k_min: int = 0
    k_max: int = 0
    width: int = 1
    nodes: int = LEAST_NODES

    def speculate(self) -> str | dict[str, Any]:
        """As a policy says it."""
        if self.drafter == OFF:
            return OFF
        tree = {"width": self.width, "nodes": self.nodes}
        return {"drafters": self.drafter, "k": {"min": self.k_min, "max": self.k_max}, "tree": tree}

    def decision(self, route: Decision, drafters: Sequence[str]) -> Decision:
        """What a policy with this choice decides where it now decides ``route``; ``drafters``: what auto means."""
        off = self.drafter == OFF
        names = () if off else tuple(drafters) if self.drafter == AUTO else (self.drafter,)
        return msgspec.structs.replace(
            route,
            drafters=names,
            auto=self.drafter == AUTO,
            k_min=self.k_min,
            k_max=self.k_max,
            adaptive=not off,
            tree_width=self.width,
            tree_nodes=self.nodes,
            reason=f"speculation is off on route {route.route}" if off else None,
        )


def describe(decision: Decision) -> str:
    """What a decision drafts, for people."""
    if not decision.drafters:
        return OFF
    tree = f", tree of width {decision.tree_width}, {decision.tree_nodes} nodes" if decision.tree_width > 1 else ""
    return f"{AUTO if decision.auto else ', '.join(decision.drafters)}, k {shown_k(decision)}{tree}"


def choices(route: Decision, drafters: Sequence[DrafterInfo], *, trees: bool) -> list[Choice]:
    """What is tried for a route that now decides ``route``: everything but that itself. ``drafters``: those loaded, in
    the order of auto; ``trees``: the engine may draft them on this route."""
    tried = [info for info in drafters if info.type not in NOT_TRIED]
    names = [info.name for info in drafters]
    found = [Choice(OFF)]
    for info in tried:
        found += _ranges(info.name, info.max_k if info.window is None else min(info.max_k, info.window - 1))
        if trees and info.type in BRANCHING:
            sizes = [(width, levels) for width, levels in TREES if levels <= info.max_k]
            found += [Choice(info.name, 0, k, width, min(MAX_TREE_NODES, k * width)) for width, k in sizes]
    if len(tried) > 1:
        found += _ranges(AUTO, max(info.max_k for info in tried))
    now = describe(route)
    return [choice for choice in found if describe(choice.decision(route, names)) != now]


def _ranges(drafter: str, limit: int) -> Iterator[Choice]:
    """Chains up to each of the tops that the drafter reaches, freely and with at least half of it."""
    for top in sorted({min(top, limit) for top in TOPS}):
        yield Choice(drafter, 0, top, nodes=max(LEAST_NODES, top))
        if top >= 4:
            yield Choice(drafter, top // 2, top, nodes=max(LEAST_NODES, top))
