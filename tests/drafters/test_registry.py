from importlib.metadata import EntryPoint, EntryPoints
from typing import Any

import pytest
from msgspec import Struct

from specproxy.drafters import registry
from specproxy.drafters.ngram import NgramDrafter
from specproxy.errors import ConfigError


class Knobs(Struct, forbid_unknown_fields=True):
    depth: int = 3
    fast: bool = False
    path: str = ""


def other_loader(name: str, options: registry.Options, host: registry.Host) -> Any:
    """Stands for a third party's loader."""
    return (name, dict(options), host.vocab_size)


NOT_CALLABLE = 5


def declare(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that a package with these entry points is installed."""
    known = EntryPoints(EntryPoint(name, value, registry.GROUP) for name, value in points.items())
    monkeypatch.setattr(registry, "entry_points", known.select)


def test_a_built_in_type_is_imported_on_use(host: Any) -> None:
    """The table knows the built-in drafters; loading one gives it its declared name."""
    drafter = registry.load("lookup", "ngram", {"max_k": 5, "path": ""}, host)
    assert isinstance(drafter, NgramDrafter)
    assert (drafter.name, drafter.needs.max_k) == ("lookup", 5)


def test_an_unknown_type_is_answered_with_the_choices(host: Any) -> None:
    """The error names the drafter, the type, and every type there is."""
    with pytest.raises(ConfigError, match=r"drafters\.x: unknown type 'ngrm'.*draft_model, .*, ngram, .*, replay"):
        registry.load("x", "ngrm", {}, host)


def test_a_third_party_registers_through_the_entry_point_group(monkeypatch: pytest.MonkeyPatch, host: Any) -> None:
    """An installed package's loader is found by its entry-point name and listed among the types."""
    monkeypatch.setitem(__import__("sys").modules, "third_party", __import__("sys").modules[__name__])
    declare(monkeypatch, mine="third_party:other_loader", ngram="third_party:other_loader")
    own = [
        "draft_model",
        "eagle",
        "eagle3",
        "grammar",
        "layer_skip",
        "medusa",
        "mtp",
        "ngram",
        "prediction",
        "replay",
        "suffix",
    ]
    assert registry.types() == sorted([*own, "mine"])
    assert registry.load("m", "mine", {"a": 1}, host) == ("m", {"a": 1}, 100)  # type: ignore[comparison-overlap]
    assert isinstance(registry.load("n", "ngram", {}, host), NgramDrafter)


@pytest.mark.parametrize("value", ["no_such_module_of_ours:load", "third_party:missing", "third_party:NOT_CALLABLE"])
def test_a_broken_third_party_is_named(monkeypatch: pytest.MonkeyPatch, host: Any, value: str) -> None:
    """A loader that cannot be imported or called is an error that says where it comes from."""
    monkeypatch.setitem(__import__("sys").modules, "third_party", __import__("sys").modules[__name__])
    declare(monkeypatch, mine=value)
    with pytest.raises(ConfigError, match=rf"drafters\.m: type mine \({value}\)"):
        registry.load("m", "mine", {}, host)


def test_options_are_converted_and_checked() -> None:
    """Text from the environment becomes the declared type; None and empty text count as not given."""
    knobs = registry.read_options(Knobs, "d", "t", {"depth": "7", "fast": "true", "path": None})
    assert knobs == Knobs(depth=7, fast=True)
    with pytest.raises(ConfigError, match=r"drafters\.d: type t has no option 'dpth'.*depth, fast, path"):
        registry.read_options(Knobs, "d", "t", {"dpth": 7})
    with pytest.raises(ConfigError, match=r"drafters\.d \(type t\).*depth"):
        registry.read_options(Knobs, "d", "t", {"depth": "deep"})


def test_fingerprints_tell_types_and_options_apart() -> None:
    """Equal declarations agree, whatever was left empty; any other type or option differs."""
    base = registry.fingerprint("ngram", {"max_n": 5})
    assert base == registry.fingerprint("ngram", {"max_n": 5, "path": "", "max_k": None})
    assert len({base, registry.fingerprint("ngram", {"max_n": 6}), registry.fingerprint("suffix", {"max_n": 5})}) == 3
