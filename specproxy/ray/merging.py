"""Evidence of several replicas as that of one: what a replica has seen since it last said so, and adding that up.

Everything that the gate counts is a sum, a mean or a sequential test. Counts add; means by Chan, Golub and LeVeque
(1979); the test of mismatches is walked again with the hard ones first, the order in which it is most likely to reject.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from specproxy.gate.evidence import Evidence, Work
from specproxy.gate.mismatches import Mismatches, MismatchTest
from specproxy.gate.statistics import Mean


class Shrunk(ValueError):
    """The newer evidence has less than the older one: it was begun anew."""


def copied(evidence: Evidence) -> Evidence:
    """The same, for somebody else to change."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(evidence), type=Evidence)


def since(new: Evidence, old: Evidence) -> Evidence:
    """What ``new`` has more than ``old``, from which it grew. Raises Shrunk where it did not."""
    part: Evidence = _merged(new, old, -1)
    return part


def added(total: Evidence, more: Evidence, test: MismatchTest) -> Evidence:
    """Both together. ``test``: the one that mismatches are tested by."""
    merged: Evidence = _merged(total, more, 1)
    merged.mismatches = copied(total).mismatches
    for _ in range(more.mismatches.hard):
        merged.mismatches.add(test, hard=True)
    for i in range(more.mismatches.clean):
        merged.mismatches.add(test, hard=False, explained=i < more.mismatches.explained)
    return merged


def _merged(a: Any, b: Any, sign: int) -> Any:
    """``a + sign * b``; what is no count is that of the newer one: of ``b`` where it is added."""
    if isinstance(a, Mean):
        return _mean(a, b, sign)
    if isinstance(a, Struct):
        return _struct(a, b, sign)
    if isinstance(a, dict):
        return _table(a, b, sign)
    if isinstance(a, int) and not isinstance(a, bool):
        count = a + sign * b
        if count < 0:
            raise Shrunk(f"a count fell from {b} to {a}")
        return count
    return b if sign > 0 else a


def _struct(a: Struct, b: Any, sign: int) -> Any:
    counted = [name for name in a.__struct_fields__ if name != "memory"]
    fields = {name: _merged(getattr(a, name), getattr(b, name), sign) for name in counted}
    if isinstance(a, Mismatches):
        fields["log_ratio"] = 0.0
    if isinstance(a, Work):
        newer = (a if fields["answers"] else Work()) if sign < 0 else b
        fields["memory"] = newer.memory if sign < 0 or newer.memory is not None else a.memory
    return type(a)(**fields)


def _table(a: dict[Any, Any], b: dict[Any, Any], sign: int) -> dict[Any, Any]:
    """By metric, of both; or counts, where a missing one is 0."""
    keys = dict.fromkeys([*a, *b])
    if any(isinstance(value, Struct) for value in (*a.values(), *b.values())):
        return {key: _merged(a[key], b[key], sign) if key in a and key in b else a.get(key, b.get(key)) for key in keys}
    counts = {key: _merged(a.get(key, 0), b.get(key, 0), sign) for key in keys}
    return {key: count for key, count in counts.items() if count}


def _mean(a: Mean, b: Mean, sign: int) -> Mean:
    n = a.n + sign * b.n
    if n < 0:
        raise Shrunk(f"a mean had {b.n} values, and has {a.n}")
    if n == 0:
        return Mean()
    mean = (a.n * a.mean + sign * b.n * b.mean) / n
    if sign > 0:
        return Mean(n, mean, a.squares + b.squares + (b.mean - a.mean) ** 2 * a.n * b.n / n)
    return Mean(n, mean, max(0.0, a.squares - b.squares - (mean - b.mean) ** 2 * b.n * n / a.n))
