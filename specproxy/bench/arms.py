"""Arms: the ways in which every prompt is answered and timed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct

from specproxy.errors import StartError
from specproxy.vocabulary import Decision

OFF = "off"
OFF_NUMERIC = "off-numeric"
POLICY = "policy"
AUTO = "auto"

ARM_HEADER = "x-specproxy-bench"
"""Names the arm of a request, for the routes that a bench's own server has for it."""

_OVERRIDE_HEADER = "x-specproxy-speculate"
_NUMBER = r"[1-9][0-9]*"
_WISH = re.compile(
    rf"(?P<name>[A-Za-z][A-Za-z0-9_.-]*)(;k=(?P<k>{_NUMBER}))?(;width=(?P<width>{_NUMBER})(;nodes=(?P<nodes>{_NUMBER}))?)?"
)
_FORMS = "off, policy, auto, a drafter, or DRAFTER;k=N;width=W;nodes=N in this order, any of them left out"
DEFAULT_NODES = 16
"""Nodes of a draft tree at most where an arm gives its width alone: the policy language's default."""


class Arm(Struct, frozen=True):
    """One way of answering. ``wish``: value of the override header; ``None`` leaves the choice to the policy.
    ``numeric``: served by the server that may answer with other last bits. ``peer``: not by us, but by another library
    on the same prompts. ``drafter``: the one that is asked for; ``k`` fixes its levels, ``None`` leaves them to the
    controller; ``width`` and ``nodes`` of its trees, 1 for a chain. ``budget``: share of the device's time that audits
    of its answers may take while users wait, of every answer; ``None``: none is audited. For a server of our own.
    """

    name: str
    wish: str | None
    numeric: bool = False
    peer: bool = False
    drafter: str = ""
    k: int | None = None
    width: int = 1
    nodes: int = DEFAULT_NODES
    budget: float | None = None

    @property
    def has_routes(self) -> bool:
        """Whether a server of our own has routes for this arm alone."""
        return self.chooses or self.budget is not None

    @property
    def chooses(self) -> bool:
        """Whether the arm says which drafter: routes of its own serve it where the server is ours."""
        return self.wish is not None and self.wish != OFF

    def headers(self, *, own_server: bool) -> dict[str, str]:
        """What makes a server answer as this arm. A server that is not ours is asked to make an exception, which its
        routes may refuse; trees cannot be asked for."""
        found = {ARM_HEADER: self.name} if own_server and self.has_routes else {}
        if self.wish is not None and not (own_server and self.chooses):
            found[_OVERRIDE_HEADER] = self.wish
        return found

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is drafted: the others are measured against this."""
        return self.name in (OFF, OFF_NUMERIC)

    def decision(self, drafters: Sequence[str]) -> Decision:
        """The arm as a policy's decision, for an engine with these ``drafters``. For arms without a peer."""
        if self.is_baseline:
            return Decision("bench", "", reason="plain")
        auto = self.drafter in (AUTO, "")
        return Decision(
            route="bench",
            revision="",
            drafters=tuple(drafters) if auto else (self.drafter,),
            auto=auto,
            k_max=self.k,
            adaptive=self.k is None,
            tree_width=self.width,
            tree_nodes=self.nodes,
        )


def parse_arm(text: str) -> Arm:
    """An arm as named on the command line: ``off``, ``policy``, ``auto``, or ``NAME``, with ``;k=N`` and, for trees,
    ``;width=W`` and ``;nodes=N`` behind it.

    Raises StartError on anything else.
    """
    name = text.strip()
    if name == OFF_NUMERIC:
        return Arm(name, OFF, numeric=True)
    if name == POLICY:
        return Arm(name, None)
    found = _WISH.fullmatch(name)
    if found is None:
        raise StartError(f"--arms: {text!r} is not an arm; expected {_FORMS}")
    if name == OFF:
        return Arm(name, OFF)
    return Arm(
        name,
        name,
        drafter=found["name"],
        k=int(found["k"]) if found["k"] else None,
        width=int(found["width"] or 1),
        nodes=int(found["nodes"] or DEFAULT_NODES),
    )


def parse_arms(texts: Sequence[str], *, numeric: bool) -> list[Arm]:
    """The arms of a run, without repetition; ``off`` is always among them, first, and ``off-numeric`` with it where
    such a server runs."""
    wanted = [Arm(OFF, OFF)]
    if numeric:
        wanted.append(Arm(OFF_NUMERIC, OFF, numeric=True))
    wanted += [parse_arm(text) for text in texts]
    return list({arm.name: arm for arm in wanted}.values())


def order(arms: Sequence[Arm], turn: int) -> list[Arm]:
    """The arms in the order of turn ``turn``: rotated by one each turn, and backwards every second round, so that
    each arm stands equally often early and late and follows each of the others."""
    n = len(arms)
    start = turn % n
    rotated = [*arms[start:], *arms[:start]]
    return rotated[::-1] if (turn // n) % 2 else rotated
