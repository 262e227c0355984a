"""A request's own wishes: about its speculation, where its route allows one, and to stay out of shadow traffic.

Header ``x-specproxy-speculate: off | NAME[;k=N]``, or body ``specproxy: {speculate: …}`` with the same text, false, or
a mapping with ``drafters`` and ``k`` as in a policy file. NAME may be ``auto``. Any request may say ``specproxy:
{shadow: false}``.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec
from msgspec import Struct, inspect

from specproxy.config.validate import misfits, show, suggest
from specproxy.errors import InvalidRequest
from specproxy.policy.catalogue import AUTO, OFF, Catalogue
from specproxy.policy.facts import OVERRIDE_FIELD, OVERRIDE_HEADER, Facts
from specproxy.policy.inherit import Range, as_names
from specproxy.policy.schema import Speculate

HEADER_FORM = "off or NAME[;k=N]"
_HEADER = re.compile(r"\s*(?P<name>[A-Za-z0-9_.-]+)\s*(;\s*k\s*=\s*(?P<k>\d{1,4})\s*)?\Z")
_FIELD = f"{OVERRIDE_FIELD}.speculate"
_CODE = "speculation_override_refused"

OWN_KEYS = ("speculate", "shadow")
"""Keys of the body's field ``specproxy``."""


class Override(Struct, frozen=True):
    """What a request asks for. ``drafters`` empty: nothing may be drafted. ``k``: as written, checked already; what it
    leaves open is the route's. ``param``: the header or field that says so, for error messages.
    """

    drafters: tuple[str, ...]
    k: int | str | dict[str, int | str]
    param: str


def parse_override(facts: Facts) -> Override | None:
    """What the request asks for, or ``None``. Raises InvalidRequest where that is malformed or contradicts itself."""
    header = None if facts.override_header is None else _from_text(facts.override_header, OVERRIDE_HEADER)
    body = _from_body(facts.override_body)
    if header is not None and body is not None and (header.drafters, header.k) != (body.drafters, body.k):
        raise _refusal(f"{OVERRIDE_HEADER} and {_FIELD} ask for different things; give one of them", OVERRIDE_HEADER)
    return header if header is not None else body


def stays_out_of_shadow(facts: Facts, header: str) -> bool:
    """Whether the request must not be computed again to compare candidates: it has the header of this name, or says so
    in its body (``parse_override`` has refused what is malformed there)."""
    body = facts.override_body
    return header.lower() in facts.headers or (isinstance(body, dict) and body.get("shadow") is False)


def _from_text(text: str, param: str) -> Override:
    match = _HEADER.match(text)
    if match is None or (match["name"] == OFF and match["k"]):
        raise _refusal(f"{param}: expected {HEADER_FORM}, got {show(text)}", param)
    return _override((match["name"],), AUTO if match["k"] is None else int(match["k"]), param)


def _from_body(body: object) -> Override | None:
    if body is None:
        return None
    if not isinstance(body, dict):
        known = " or ".join(OWN_KEYS)
        raise _refusal(f"{OVERRIDE_FIELD}: expected a mapping with {known}, got {show(body)}", OVERRIDE_FIELD)
    for key in body:
        if key not in OWN_KEYS:
            hint = suggest(str(key), list(OWN_KEYS)) or f"; known: {', '.join(OWN_KEYS)}"
            raise _refusal(f"{OVERRIDE_FIELD}: unknown key {show(key)}{hint}", f"{OVERRIDE_FIELD}.{key}")
    shadow = body.get("shadow")
    if shadow is not None and not isinstance(shadow, bool):
        param = f"{OVERRIDE_FIELD}.shadow"
        raise InvalidRequest(f"{param}: expected true or false, got {show(shadow)}", param=param)
    wish = body.get("speculate")
    if wish is None:
        return None
    if wish is False:
        return Override((), 0, _FIELD)
    if isinstance(wish, str):
        return _from_text(wish, _FIELD)
    if not isinstance(wish, dict):
        raise _refusal(f"{_FIELD}: expected {HEADER_FORM}, false, or a mapping, got {show(wish)}", _FIELD)
    return _from_mapping(wish)


def _from_mapping(wish: dict[str, Any]) -> Override:
    kind = inspect.type_info(Speculate)
    faults = misfits(wish, kind)
    if "tree" in wish:
        raise _refusal(f"{_FIELD}: a request chooses drafters and k; the tree is the route's", f"{_FIELD}.tree")
    if faults:
        where = f"{_FIELD}.{faults[0].key}".rstrip(".")
        raise _refusal(f"{where}: {faults[0].message}", where)
    spec = msgspec.convert(wish, Speculate)
    return _override(as_names(spec.drafters), wish.get("k", AUTO), _FIELD)


def _override(drafters: tuple[str, ...], k: int | str | dict[str, int | str], param: str) -> Override:
    off = drafters == (OFF,) or k in (0, False, OFF) or (isinstance(k, dict) and k.get("max") == 0)
    return Override((), 0, param) if off else Override(drafters, k, param)


class Allowance(Struct, frozen=True):
    """What a route lets a request choose: among which drafters, and k within which range."""

    route: str
    allowed: bool
    drafters: tuple[str, ...]
    k: Range


def grant(override: Override, allowance: Allowance, catalogue: Catalogue) -> tuple[tuple[str, ...], bool, Range]:
    """Drafters (none: draft nothing), whether the controller chooses among them, and the range of k.

    Raises InvalidRequest for anything outside ``allowance``: a wish is granted or refused, never bent.
    """
    where, param = f"route {allowance.route}", override.param
    if not allowance.allowed:
        raise _refusal(f"{param}: {where} does not let a request choose its speculation", param)
    if not override.drafters:
        return (), False, Range(0, 0, False)
    if not allowance.drafters:
        raise _refusal(f"{param}: nothing is drafted on {where}; a request may only ask for off", param)
    auto = override.drafters == (AUTO,)
    names = allowance.drafters if auto else override.drafters
    for name in names:
        if name not in allowance.drafters:
            hint = suggest(name, allowance.drafters) or f"; {where} has {', '.join(allowance.drafters)}"
            raise _refusal(f'{param}: "{name}" is no drafter of {where}{hint}', param)
    return names, auto, _granted_range(override, allowance, names, catalogue)


def _granted_range(override: Override, allowance: Allowance, names: tuple[str, ...], catalogue: Catalogue) -> Range:
    own = allowance.k
    k = _resolve(override.k, own)
    above = own.max is not None and (k.max is None or k.max > own.max)
    if k.min < own.min or above or (k.max is not None and k.min > k.max):
        raise _refusal(
            f"{override.param}: k {k} is outside {own}, the range of route {allowance.route}", override.param
        )
    limits = [spec.max_k for spec in catalogue.drafters if spec.name in names]
    known = [limit for limit in limits if limit is not None]
    explicit = k.max is not None and k.max != own.max
    if explicit and len(known) == len(limits) and k.max is not None and k.max > max(known):
        raise _refusal(f"{override.param}: k {k} is beyond {', '.join(names)}, at most {max(known)}", override.param)
    return k


def _resolve(k: int | str | dict[str, int | str], own: Range) -> Range:
    """The range asked for; what it does not say is the route's."""
    if isinstance(k, int):
        return Range(k, k, False)
    if isinstance(k, str):
        return own
    low, high = k.get("min"), k.get("max")
    return Range(low if isinstance(low, int) else own.min, high if isinstance(high, int) else own.max, True)


def _refusal(message: str, param: str) -> InvalidRequest:
    return InvalidRequest(message, param=param, code=_CODE)
