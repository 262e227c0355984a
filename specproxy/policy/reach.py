"""Routes that no request can reach: because earlier routes take all of theirs, or because nothing matches them.

The check is one-sided: it speaks up only where it is sure. A match is split into its alternatives (an ``any`` has one
per part); a route is out of reach when each alternative is taken by an earlier route or cannot hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from specproxy.policy.conditions import AllOf, AnyOf, Condition, Leaf, Not

MAX_ALTERNATIVES = 256
"""More than that are not looked at."""

Alternative = tuple[Leaf | Not, ...]


def alternatives(condition: Condition) -> list[Alternative]:
    """The ways in which ``condition`` can hold; each is a list of conditions that hold together."""
    if isinstance(condition, Leaf | Not):
        return [(condition,)]
    if isinstance(condition, AnyOf):
        return [way for part in condition.parts for way in alternatives(part)]
    if isinstance(condition, AllOf):
        ways: list[Alternative] = [()]
        for part in condition.parts:
            more = alternatives(part)
            if len(ways) * len(more) > MAX_ALTERNATIVES:
                return [()]
            ways = [(*way, *other) for way, other in itertools.product(ways, more)]
        return ways
    raise TypeError(f"no such condition: {condition}")


def covers(condition: Condition, way: Alternative) -> bool:
    """Whether ``condition`` surely holds wherever all of ``way`` do."""
    if isinstance(condition, Leaf):
        return any(
            isinstance(part, Leaf) and part.subject == condition.subject and part.predicate.within(condition.predicate)
            for part in way
        )
    if isinstance(condition, AllOf):
        return all(covers(part, way) for part in condition.parts)
    if isinstance(condition, AnyOf):
        return any(covers(part, way) for part in condition.parts)
    if isinstance(condition, Not):
        return any(isinstance(part, Not) and _same(part.part, condition.part) for part in way)
    return False


def _same(left: Condition, right: Condition) -> bool:
    """Whether both hold for the same requests, as far as one sees: each alternative of one is covered by the other."""
    return all(covers(right, way) for way in alternatives(left)) and all(
        covers(left, way) for way in alternatives(right)
    )


def impossible(way: Alternative) -> str | None:
    """Why the conditions of ``way`` cannot hold together, or ``None``."""
    for part in way:
        if isinstance(part, Leaf) and part.predicate.impossible:
            return f"{part.where}: nothing is {part.predicate.wanted}"
    for one, other in itertools.combinations([part for part in way if isinstance(part, Leaf)], 2):
        if one.subject == other.subject and {one.predicate.wanted, other.predicate.wanted} == {"present", "absent"}:
            return f"{one.where} and {other.where}: nothing is both present and absent"
    return None


def unreachable(routes: Sequence[tuple[str, Condition | None]]) -> Iterator[tuple[int, str]]:
    """Index and reason of every route that no request can reach. ``None`` as a condition: takes every request."""
    for index, (_, condition) in enumerate(routes):
        reasons: list[str] = []
        for way in [()] if condition is None else alternatives(condition):
            why = impossible(way) or _taker(routes[:index], way)
            if why is None:
                break
            reasons.append(why)
        else:
            yield index, "; ".join(dict.fromkeys(reasons))


def _taker(earlier: Sequence[tuple[str, Condition | None]], way: Alternative) -> str | None:
    for name, condition in earlier:
        if condition is None:
            return f"route {name} before it takes every request"
        if covers(condition, way):
            return f"route {name} before it takes these requests"
    return None
