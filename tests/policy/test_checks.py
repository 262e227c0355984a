"""Warnings and notes of policy check."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from specproxy.config.load import load_start_config
from specproxy.policy.catalogue import Catalogue
from specproxy.vocabulary import DrafterInfo, ModelInfo, Numerics

if TYPE_CHECKING:
    from tests.policy.conftest import FindAll


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ("speculate: {drafters: draft_model, k: {max: 9}}", "k up to 9 is beyond draft_model, which drafts 8 at most"),
        ("speculate: {drafters: draft_model, k: {min: 9}}", "draft_model drafts 8 at most and can never reach 9"),
        ("speculate: {k: 20}", "k up to 20 is beyond tree.nodes, which allows 16 per step"),
        ("speculate: off, override: true", "speculation is off here, so it can only ask for off"),
        ("speculate: {drafters: ngram}, override: true", "a request may ask for any k, but ngram drafts 16 at most"),
    ],
)
def test_settings_beyond_what_is_there_are_warned_of(find_all: FindAll, settings: str, warning: str) -> None:
    """With the route and the line; the set still works."""
    findings = find_all(f"routes:\n  - name: r\n    match: {{n: 1}}\n  - {{name: q, {settings}}}\n")
    assert findings.errors == []
    assert any(text.startswith("00.yaml:4: ") and "route q: " in text and warning in text for text in findings.warnings)


@pytest.mark.parametrize(
    "settings",
    [
        "speculate: {k: 9}",
        "speculate: {drafters: draft_model, k: 8}",
        "speculate: {drafters: draft_model}",
        "speculate: off",
        "override: true",
        "speculate: {k: 16}",
    ],
)
def test_what_is_fine_is_not_warned_of(find_all: FindAll, settings: str) -> None:
    """Among them a k that only one of the drafters of auto cannot reach."""
    assert find_all(f"routes: [{{name: q, {settings}}}]\n").warnings == []


def test_a_k_beyond_the_window_is_warned_of(find_all: FindAll, catalogue: Catalogue) -> None:
    """A drafter cannot draft more than it can see."""
    narrow = msgspec.structs.replace(catalogue.drafters[1], window=4)
    using = msgspec.structs.replace(catalogue, drafters=(narrow,))
    findings = find_all("routes: [{name: q, speculate: {k: 4}}]\n", using=using)
    assert "k up to 4 does not fit the context window of ngram, 4 tokens" in findings.warnings[0]


def test_numeric_engines_and_bitwise_routes(find_all: FindAll, catalogue: Catalogue) -> None:
    """A tree, and bitwise itself, where bitwise is not available; silence where the route asks for numeric."""
    numeric = msgspec.structs.replace(catalogue, exactness="numeric")
    tree = "speculate: {tree: {width: 2}}"
    assert (
        "a tree where bitwise is not available"
        in find_all(f"routes: [{{name: q, {tree}}}]\n", using=numeric).warnings[-1]
    )
    plain = find_all("defaults: {exactness: bitwise}\nroutes: [{name: p, match: {n: 1}}, {name: q}]\n", using=numeric)
    assert len(plain.warnings) == 1
    assert plain.warnings[0].startswith("00.yaml:1: exactness: bitwise is not available")
    assert find_all(f"routes: [{{name: q, exactness: numeric, {tree}}}]\n", using=numeric).warnings == []


def test_what_inherits_an_off_is_told(find_all: FindAll) -> None:
    """A route that names drafters under a default of off would silently draft nothing."""
    findings = find_all("defaults: {speculate: off}\nroutes: [{name: q, speculate: {drafters: ngram}}]\n")
    assert "nothing is drafted: k is 0 from defaults (" in findings.warnings[0]
    assert "write k: auto here" in findings.warnings[0]


def test_upstreams_are_noted_where_they_stand(find_all: FindAll) -> None:
    """Nobody can vouch for their answers; the engine's need no note."""
    findings = find_all(
        "defaults: {hold_out: 0.1, backend: vllm-a}\nroutes:\n  - name: q\n    gate: {mode: auto}\n"
        "    audit: {fraction: 0.5}\n    shadow: {fraction: 0.5}\n    backend: [engine, vllm-a]\n"
    )
    assert findings.notes == [
        f"00.yaml:{line}: {key}: what an upstream answers is outside the identity promise; "
        "x-specproxy-exactness says so"
        for line, key in ((1, "defaults.backend"), (7, "routes[0].backend"))
    ]
    assert find_all("routes: [{name: q, backend: engine}, {name: r, backend: [engine]}]\n").notes == []


def test_settings_of_the_engine_on_a_route_that_it_never_serves_are_told(find_all: FindAll) -> None:
    """Only the route's own: what it inherits is meant for others."""
    (warning,) = find_all("routes: [{name: q, backend: vllm-a, speculate: {k: 5}}]\n").warnings
    assert "route q: says speculate, but only upstreams serve it" in warning
    inherited = "defaults: {speculate: {k: 5}}\nroutes: [{name: q, backend: vllm-a}]\n"
    assert find_all(inherited).warnings == []
    assert find_all("routes: [{name: q, backend: [vllm-a, engine], speculate: {k: 5}}]\n").warnings == []


def test_trees_that_are_not_bitwise(find_all: FindAll, catalogue: Catalogue) -> None:
    """Where trees were not proven, a bitwise route with a tree is told that it gets chains; a numeric one is not."""
    unproven = msgspec.structs.replace(catalogue, exactness="bitwise", trees=False)
    tree = "speculate: {tree: {width: 2}}"
    (warning,) = find_all(f"routes: [{{name: q, {tree}}}]\n", using=unproven).warnings
    assert "this route gets chains" in warning
    assert find_all("routes: [{name: q}]\n", using=unproven).warnings == []
    assert find_all(f"routes: [{{name: q, exactness: numeric, {tree}}}]\n", using=unproven).warnings == []


def test_a_route_that_captures_needs_a_directory(find_all: FindAll, catalogue: Catalogue) -> None:
    """Told where it is written, once where it is inherited; with a directory, only where no route fills it."""
    on, off = "routes: [{name: q, capture: on}]\n", "routes: [{name: q}]\n"
    inherited = "defaults: {capture: true}\nroutes: [{name: p, match: {n: 1}}, {name: q}]\n"
    nothing = "capture: nothing is kept: the start configuration names no directory (serve --capture DIR)"
    assert find_all(inherited).warnings == [f"00.yaml:1: {nothing}"]
    assert find_all(on).warnings == [f"00.yaml:1: {nothing.replace('nothing', 'route q: nothing', 1)}"]
    assert find_all(off).warnings == []
    using = msgspec.structs.replace(catalogue, captures=True)
    assert find_all(on, using=using).warnings == []
    (warning,) = find_all(off, using=using).warnings
    assert warning.endswith("but no route has capture: on; nothing is kept")


def test_a_route_may_name_a_directory_of_its_own(find_all: FindAll) -> None:
    """Then it needs none from the start configuration; a limit of nothing is refused."""
    findings = find_all("routes: [{name: q, capture: {dir: /tmp/kept, max_mb: 5}}]\n")
    assert (findings.errors, findings.warnings) == ([], [])
    (error,) = find_all("routes: [{name: q, capture: {dir: /tmp/kept, max_mb: 0}}]\n").errors
    assert "routes[0].capture.max_mb" in error


def test_the_catalogue_of_a_configuration_is_sharpened_by_the_engine() -> None:
    """Names and declared limits at first; then what is loaded, in the same order."""
    config = load_start_config(flags={"drafters": ["d=draft_model:/d"], "model.max_model_len": "512"})
    first = Catalogue.from_config(config)
    assert first.drafter_names == ("grammar", "prediction", "suffix", "ngram", "d")
    assert (first.max_model_len, first.exactness, first.drafters[4].max_k) == (512, None, None)
    loaded = [DrafterInfo("d", "draft_model", 8, 1024, "f"), DrafterInfo("ngram", "ngram", 16, None, "g")]
    numerics = Numerics("f", "cpu", "bfloat16", "2", "bitwise", [1, 8], 64, 2, 2, "fused")
    second = first.with_engine(loaded, numerics, ModelInfo("m", "f", 256, 100, [0]))
    assert second.drafter_names == ("ngram", "d")
    assert (second.max_model_len, second.exactness) == (256, "bitwise")
    assert second.drafter("d") == second.drafters[1]
    assert second.drafter("x") is None
