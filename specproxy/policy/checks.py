"""Checks of a whole set beyond its types: names, ranges, what the machine at hand can do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

from specproxy.config.yaml_reader import KeyPath, Problem
from specproxy.policy.catalogue import AUTO, ENGINE, Catalogue, DrafterSpec
from specproxy.policy.inherit import Effective, Range, as_names, k_range, speculation
from specproxy.policy.reading import Findings, RouteSource, Source, did_you_mean

Fault = tuple[KeyPath, str]


def check_settings(effective: Effective, catalogue: Catalogue, findings: Findings, route: str | None = None) -> None:
    """Check the settings of ``route`` (none: of the defaults alone), each fault at the line that it comes from.

    A fault that routes inherit is the same for all of them, so that it is told once. What the defaults alone would do
    is warned of where a route really inherits it.
    """
    for path, message in itertools.chain(_names(effective, catalogue), _ranges(effective), _gate(effective)):
        findings.errors.append(effective.problem(path, message))
    for check in (
        (_limits_of_drafters, _numerics, _nodes, _override, _inherited_off, _capture, _elsewhere)
        if route is not None
        else ()
    ):
        for path, message in check(effective, catalogue):
            own = effective.origin(*path).layer == "route"
            findings.warnings.append(effective.problem(path, f"route {route}: {message}" if own else message))


def _names(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    """Every drafter and upstream must be declared, and named once."""
    lists: tuple[tuple[KeyPath, tuple[str, ...], tuple[str, ...], str], ...] = (
        (("backend",), as_names(effective.settings.backend), catalogue.backend_names, "upstream"),
        (
            ("speculate", "drafters"),
            as_names(speculation(effective.settings).drafters),
            catalogue.drafter_names,
            "drafter",
        ),
    )
    for path, names, known, what in lists:
        for index, name in enumerate(names):
            if name == AUTO and what == "drafter":
                if len(names) > 1:
                    yield path, f"{AUTO} means every loaded drafter and stands alone, got {', '.join(names)}"
            elif name not in known:
                yield path, f'"{name}" is no declared {what}{did_you_mean(name, known, "declared")}'
            elif name in names[:index]:
                yield path, f'"{name}" stands there twice'


def _ranges(effective: Effective) -> Iterator[Fault]:
    k = k_range(effective.settings)
    if k.max is not None and k.min > k.max:
        low, high = (effective.origin("speculate", "k", end) for end in ("min", "max"))
        yield ("speculate", "k"), f"min {k.min} from {low} is above max {k.max} from {high}"


def _gate(effective: Effective) -> Iterator[Fault]:
    gate = effective.settings.gate
    if gate.mismatch.p0 >= gate.mismatch.p1:
        yield ("gate", "mismatch"), f"expected p0 below p1, got {gate.mismatch.p0:g} and {gate.mismatch.p1:g}"
    if any(later <= earlier for earlier, later in itertools.pairwise(gate.canary)):
        yield ("gate", "canary"), f"expected rising shares, got {', '.join(f'{share:g}' for share in gate.canary)}"


def _specs(effective: Effective, catalogue: Catalogue) -> list[DrafterSpec]:
    """The drafters that a route may use; none where it drafts nothing, or where the engine never serves it."""
    if k_range(effective.settings).off or ENGINE not in as_names(effective.settings.backend):
        return []
    names = as_names(speculation(effective.settings).drafters)
    return [spec for spec in catalogue.drafters if AUTO in names or spec.name in names]


def _limits_of_drafters(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    """K beyond what a named drafter can do; where the controller chooses, beyond what any can."""
    k, specs = k_range(effective.settings), _specs(effective, catalogue)
    auto = speculation(effective.settings).drafters == AUTO
    beyond = [fault for spec in specs if (fault := _beyond(k, spec)) is not None]
    if not auto or len(beyond) == len(specs):
        yield from beyond


def _beyond(k: Range, spec: DrafterSpec) -> Fault | None:
    path = ("speculate", "k", "max")
    if spec.max_k is not None and k.min > spec.max_k:
        return ("speculate", "k", "min"), f"{spec.name} drafts {spec.max_k} at most and can never reach {k.min}"
    if spec.max_k is not None and k.max is not None and k.max > spec.max_k:
        return path, f"k up to {k.max} is beyond {spec.name}, which drafts {spec.max_k} at most"
    if spec.window is not None and k.max is not None and k.max >= spec.window:
        return path, f"k up to {k.max} does not fit the context window of {spec.name}, {spec.window} tokens"
    return None


def _numerics(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    if not catalogue.trees and effective.settings.exactness == "bitwise":
        if _specs(effective, catalogue) and speculation(effective.settings).tree.width > 1:
            message = "trees were not proven bitwise on this engine: this route gets chains, or say exactness: numeric"
            yield ("speculate", "tree", "width"), message
        return
    if catalogue.exactness != "numeric" or effective.settings.exactness != "bitwise":
        return
    if _specs(effective, catalogue) and speculation(effective.settings).tree.width > 1:
        message = "a tree where bitwise is not available: this engine is numeric, so wider rows may flip near-ties"
        yield ("speculate", "tree", "width"), message
    else:
        yield (
            ("exactness",),
            "bitwise is not available: this engine is numeric; answers say so in x-specproxy-exactness",
        )


def _nodes(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    k, tree = k_range(effective.settings), speculation(effective.settings).tree
    if _specs(effective, catalogue) and k.max is not None and k.max > tree.nodes:
        yield ("speculate", "k", "max"), f"k up to {k.max} is beyond tree.nodes, which allows {tree.nodes} per step"


def _override(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    """An override that exceeds the limits: one that could ask for what the route or its drafters cannot give."""
    if not effective.settings.override:
        return
    k = k_range(effective.settings)
    if k.off and effective.origin("override").layer == "route":
        yield ("override",), "a request may override, but speculation is off here, so it can only ask for off"
    if k.max is None and speculation(effective.settings).drafters != AUTO:
        for spec in _specs(effective, catalogue):
            if spec.max_k is not None:
                yield ("override",), f"a request may ask for any k, but {spec.name} drafts {spec.max_k} at most"


def _inherited_off(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    if not k_range(effective.settings).off:
        return
    k = effective.origin("speculate", "k")
    for key in ("drafters", "tree"):
        origin = effective.origin("speculate", key)
        if origin.layer == "route" and k.layer != "route":
            yield ("speculate", key), f"says {key}, but nothing is drafted: k is 0 from {k}; write k: auto here"


def _capture(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    if effective.settings.capture is True and not catalogue.captures:
        yield ("capture",), "nothing is kept: the start configuration names no directory (serve --capture DIR)"


def _elsewhere(effective: Effective, catalogue: Catalogue) -> Iterator[Fault]:
    """Settings of the route's own that take effect in the engine alone, where the engine never serves it."""
    if ENGINE in as_names(effective.settings.backend):
        return
    own = {leaf[0]: leaf for leaf, origin in effective.origins.items() if origin.layer == "route"}
    for key in ("speculate", "exactness", "override", "audit", "shadow", "hold_out", "capture"):
        if key in own:
            yield own[key], f"says {key}, but only upstreams serve it: they speculate as they are set up themselves"


def check_capture(source: Source, captures: bool, catalogue: Catalogue, findings: Findings) -> None:
    """Warn where a directory for captured answers is given, and no route fills it. ``captures``: a route does."""
    if catalogue.captures and not captures:
        message = "a directory for it is given at the start, but no route has capture: on; nothing is kept"
        findings.warnings.append(Problem(str(source.directory), 0, "capture", message))


def check_set(source: Source, findings: Findings) -> None:
    """Check what only the whole set shows: a catch-all, and where answers come from that we cannot vouch for."""
    if source.complete and not any(not route.match for route in source.routes):
        last = source.routes[-1].document.file if source.routes else str(source.directory)
        message = "no route takes every request; expected a last route without match, such as name: default"
        findings.errors.append(Problem(last, 0, "routes", message))
    layers = [] if source.defaults is None else [source.defaults]
    for layer in (*layers, *(route.layer for route in source.routes)):
        if layer.mapping.get("backend", ENGINE) not in (ENGINE, [ENGINE]):
            message = "what an upstream answers is outside the identity promise; x-specproxy-exactness says so"
            findings.notes.append(layer.document.problem((*layer.path, "backend"), message))


def route_problems(route: RouteSource, findings: Findings) -> Callable[[KeyPath, str], None]:
    """Reports faults of a route's match."""

    def report(path: KeyPath, message: str) -> None:
        findings.errors.append(route.problem(("match", *path), message))

    return report
