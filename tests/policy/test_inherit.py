"""Inheritance, key by key."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specproxy.config.yaml_reader import Document, parse_yaml
from specproxy.policy.inherit import Effective, Layer, as_range, inherit, k_range, speculation
from specproxy.policy.schema import CaptureTo, KRange, Settings


def layer(label: str, text: str) -> Layer:
    """A layer written in YAML."""
    document = parse_yaml(text, f"{label}.yaml", [])
    assert document is not None
    assert isinstance(document.value, dict)
    return Layer(label, document, (), document.value)


def effective(*texts: str) -> Effective:
    """Defaults and route, written in YAML."""
    labels = ["defaults", "route"][-len(texts) :]
    return inherit([layer(label, text) for label, text in zip(labels, texts, strict=True)])


def k_of(*texts: str) -> tuple[int, int | None, bool]:
    """Minimum, maximum, adaptive."""
    k = k_range(effective(*texts).settings)
    return k.min, k.max, k.adaptive


def test_without_layers_everything_is_built_in() -> None:
    """The Structs' own defaults."""
    merged = inherit([])
    assert merged.settings == Settings()
    assert str(merged.origin("speculate", "k")) == "built in"


def test_a_route_inherits_every_key_that_it_does_not_give() -> None:
    """Deep: a key inside a mapping leaves its neighbours alone."""
    merged = effective(
        "limits: {max_tokens: 100, tool_calls: 3}\nspeculate: {tree: {width: 2}, drafters: ngram}\n",
        "limits: {max_tokens: 50}\nspeculate:\n  tree: {nodes: 8}\n",
    )
    limits, spec = merged.settings.limits, speculation(merged.settings)
    assert (limits.max_tokens, limits.tool_calls, limits.timeout_s) == (50, 3, 600)
    assert (spec.tree.width, spec.tree.nodes, spec.drafters) == (2, 8, "ngram")
    assert str(merged.origin("limits", "max_tokens")) == "route (route.yaml:1)"
    assert str(merged.origin("limits", "tool_calls")) == "defaults (defaults.yaml:1)"
    assert str(merged.origin("limits", "timeout_s")) == "built in"
    assert str(merged.origin("speculate", "tree", "nodes")) == "route (route.yaml:3)"
    assert str(merged.origin("speculate", "drafters")) == "defaults (defaults.yaml:2)"


def test_null_takes_a_limit_away() -> None:
    """It is a value like any other, not the same as nothing."""
    assert effective("limits: {max_tokens: 5}", "limits: {max_tokens: null}").settings.limits.max_tokens is None


@pytest.mark.parametrize("off", ["speculate: off", "speculate: false", "speculate: {k: 0}", "speculate: {k: off}"])
def test_off_has_several_spellings(off: str) -> None:
    """They mean the same, alone and inherited."""
    assert effective(off).settings == effective("speculate: {k: 0}").settings
    assert k_range(effective(off, "override: true").settings).off
    assert k_range(effective(off, "speculate: {drafters: ngram}").settings).off
    assert not k_range(effective(off, "speculate: {k: auto}").settings).off
    assert k_range(effective("speculate: {k: {min: 2, max: 4}, drafters: ngram}", off).settings).off


def test_the_forms_of_k() -> None:
    """A number is fixed; auto and ranges are adapted."""
    assert k_of("speculate: {k: 5}") == (5, 5, False)
    assert k_of("speculate: {k: auto}") == (0, None, True)
    assert k_of("speculate: {k: {min: 2, max: 8}}") == (2, 8, True)
    assert k_of("speculate: {k: {max: 8}}") == (0, 8, True)
    assert k_of("speculate: {k: {min: 2}}") == (2, None, True)
    assert k_of("speculate: {k: {max: 0}}")[1] == 0


def test_ranges_merge_with_ranges_only() -> None:
    """Over a fixed number a range starts anew, and a number replaces a range."""
    ranged = "speculate: {k: {min: 4, max: 8}}"
    assert k_of(ranged, "speculate: {k: {max: 12}}") == (4, 12, True)
    assert k_of(ranged, "speculate: {k: 3}") == (3, 3, False)
    assert k_of("speculate: {k: 5}", "speculate: {k: {max: 12}}") == (0, 12, True)
    assert k_of("speculate: off", "speculate: {k: {max: 12}}") == (0, 12, True)
    assert k_of(ranged, "speculate: {k: {max: auto}}") == (4, None, True)


def test_capture_on_over_off_and_back() -> None:
    """Built in it is off; the words and the truth values mean the same."""
    assert effective("override: true").settings.capture is False
    for on, off in (("on", "off"), ("true", "false")):
        assert effective(f"capture: {off}", f"capture: {on}").settings.capture is True
        assert effective(f"capture: {on}", f"capture: {off}").settings.capture is False
    own = effective("capture: on", "capture: {dir: /kept}").settings.capture
    assert own == CaptureTo(dir="/kept", max_mb=512)
    assert effective("capture: {dir: /kept}", "capture: off").settings.capture is False


def test_lists_replace() -> None:
    """An ordered list has no keys to merge by."""
    merged = effective("speculate: {drafters: [a, b]}\ngate: {canary: [0.5, 1]}", "speculate: {drafters: [c]}")
    assert speculation(merged.settings).drafters == ["c"]
    assert merged.settings.gate.canary == [0.5, 1.0]


_k = st.one_of(
    st.just("auto"),
    st.integers(0, 8),
    st.fixed_dictionaries({}, optional={"min": st.integers(0, 4), "max": st.integers(4, 9) | st.just("auto")}),
)
_layer = st.fixed_dictionaries(
    {},
    optional={
        "exactness": st.sampled_from(["bitwise", "numeric"]),
        "override": st.booleans(),
        "hold_out": st.floats(0, 1),
        "backend": st.sampled_from(["engine", ["engine", "a"]]),
        "limits": st.fixed_dictionaries(
            {}, optional={"max_tokens": st.none() | st.integers(1, 9), "tool_calls": st.none() | st.integers(0, 9)}
        ),
        "speculate": st.just("off")
        | st.just(False)
        | st.fixed_dictionaries(
            {},
            optional={
                "drafters": st.sampled_from(["auto", "x", ["x", "y"]]),
                "k": _k,
                "tree": st.fixed_dictionaries({}, optional={"width": st.integers(1, 4), "nodes": st.integers(1, 63)}),
            },
        ),
    },
)


def _merged(*layers: dict[str, Any]) -> Effective:
    return inherit([Layer(str(i), Document(f"{i}", mapping), (), mapping) for i, mapping in enumerate(layers)])


@settings(max_examples=200, deadline=None)
@given(_layer, _layer)
def test_the_last_layer_that_gives_a_leaf_wins(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    """Every plain leaf comes from the upper layer, else from the lower, else it is built in; inputs stay the same."""
    before = copy.deepcopy((lower, upper))
    merged = _merged(lower, upper)
    assert (lower, upper) == before
    got: dict[str, Any] = msgspec.to_builtins(merged.settings)
    built_in: dict[str, Any] = msgspec.to_builtins(Settings())
    for key in ("exactness", "override", "hold_out", "backend"):
        assert got[key] == upper.get(key, lower.get(key, built_in[key]))
    for key in ("max_tokens", "tool_calls", "timeout_s"):
        tables = [item.get("limits", {}) for item in (upper, lower)] + [built_in["limits"]]
        assert got["limits"][key] == next(table[key] for table in tables if key in table)


@settings(max_examples=200, deadline=None)
@given(_layer, _layer)
def test_an_empty_layer_changes_nothing(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    """Neither between two others nor at the end, and a layer said twice is said once."""
    once = _merged(lower, upper).settings
    assert _merged(lower, {}, upper, {}).settings == once
    assert _merged(lower, upper, upper).settings == once


@settings(max_examples=100, deadline=None)
@given(_layer, _layer)
def test_every_leaf_has_an_origin_that_said_it(lower: dict[str, Any], upper: dict[str, Any]) -> None:
    """A leaf whose origin is a layer equals what that layer gives."""
    merged = _merged(lower, upper)
    for path, origin in merged.origins.items():
        if origin.layer == "built in" or path[0] == "speculate":
            continue
        value: Any = (lower, upper)[int(origin.layer)]
        for key in path:
            value = value[key]
        found: Any = msgspec.to_builtins(merged.settings)
        for key in path:
            found = found[key]
        assert found == value


def test_ranges_in_words() -> None:
    """As tables and messages show them."""
    assert str(as_range(0)) == "off"
    assert str(as_range(5)) == "5"
    assert str(as_range(KRange(min=2, max=8))) == "2 to 8"
    assert str(as_range("auto")) == "0 to the drafter’s own limit"
