"""Drafters by type name: a table that imports on use.

Built-in types stand in a table; third parties add theirs through the entry-point group ``specproxy.drafters``, whose
names are type names and whose objects are loaders. A built-in name cannot be taken over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, TypeVar, cast

import msgspec

from specproxy.drafters.base import Drafter
from specproxy.errors import ConfigError
from specproxy.heads.base import OwnText, TargetFacts
from specproxy.kernels.paged import KVBuffers
from specproxy.models.base import StepModel

GROUP = "specproxy.drafters"
OptionValue = str | int | float | bool | None
Options = Mapping[str, OptionValue]


class Host(Protocol):
    """What the engine offers to a drafter that is being loaded."""

    @property
    def vocab_size(self) -> int:
        """Ids that the target's tokenizer knows; drafted ids are below it."""
        ...

    @property
    def max_model_len(self) -> int:
        """Tokens of context that the target is served with."""
        ...

    @property
    def device(self) -> str:
        """Where the target runs: "cpu", "cuda"."""
        ...

    @property
    def tokenizer(self) -> str:
        """Identity of the target's vocabulary (models.loading.tokenizer_hash)."""
        ...

    @property
    def target(self) -> TargetFacts:
        """What a head shares with the target."""
        ...

    @property
    def model(self) -> StepModel:
        """The target itself, for drafters that are a part of it."""
        ...

    @property
    def kv(self) -> KVBuffers:
        """The target's KV."""
        ...

    def own_texts(self) -> Sequence[OwnText]:
        """Texts that the target wrote, with its hidden states: made when first asked for."""
        ...

    @property
    def num_pages(self) -> int:
        """Pages of the pool, reserved ones included: a drafter with KV in the pool has as many."""
        ...

    @property
    def page_size(self) -> int:
        """Tokens per page."""
        ...

    def progress(self, what: str) -> None:
        """Tell whoever waits for the engine what is being done."""
        ...

    def on_allocate(self, listener: Callable[[int], None]) -> None:
        """Call ``listener`` with every page that changes hands, before its new owner writes to it."""
        ...


Loader = Callable[[str, Options, Host], Drafter]
"""(declared name, options, host) -> drafter. Raises ConfigError for options, ModelLoadError for weights."""

_BUILT_IN: Mapping[str, str] = {
    "draft_model": "specproxy.drafters.draft_model:load",
    "eagle": "specproxy.drafters.heads:load_eagle",
    "eagle3": "specproxy.drafters.heads:load_eagle3",
    "grammar": "specproxy.drafters.grammar:load",
    "layer_skip": "specproxy.drafters.layer_skip:load",
    "medusa": "specproxy.drafters.heads:load_medusa",
    "mtp": "specproxy.drafters.heads:load_mtp",
    "ngram": "specproxy.drafters.ngram:load",
    "prediction": "specproxy.drafters.prediction:load",
    "replay": "specproxy.drafters.replay:load",
    "suffix": "specproxy.drafters.suffix:load",
}


def types() -> list[str]:
    """Every type name that can be loaded here, sorted."""
    return sorted({*_BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def load(name: str, drafter_type: str, options: Options, host: Host) -> Drafter:
    """The drafter declared as ``name``, of type ``drafter_type``.

    Raises ConfigError for an unknown type (listing the known ones), a broken third-party loader or wrong options,
    ModelLoadError for weights that cannot be loaded.
    """
    return _loader(name, drafter_type)(name, options, host)


def fingerprint(drafter_type: str, options: Options) -> str:
    """Identity of a drafter that is defined by its type and options alone (one with weights adds theirs)."""
    given = {key: value for key, value in options.items() if value is not None and value != ""}
    return hashlib.sha256(json.dumps([drafter_type, given], sort_keys=True).encode()).hexdigest()


T = TypeVar("T")


def read_options(kind: type[T], name: str, drafter_type: str, options: Options) -> T:
    """``options`` as the msgspec Struct ``kind``; values that are ``None`` or empty count as not given.

    Raises ConfigError naming the drafter, the option and what was expected, also for an option ``kind`` does not know.
    """
    given = {key: value for key, value in options.items() if value is not None and value != ""}
    known = [field.encode_name for field in msgspec.structs.fields(cast(type[msgspec.Struct], kind))]
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"drafters.{name}: type {drafter_type} has no option {unknown[0]!r}; expected one of: {', '.join(known)}"
        )
    try:
        return msgspec.convert(given, kind, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"drafters.{name} (type {drafter_type}): {error}") from None


def _loader(name: str, drafter_type: str) -> Loader:
    target = _BUILT_IN.get(drafter_type)
    if target is not None:
        module, _, attribute = target.partition(":")
        return cast(Loader, getattr(import_module(module), attribute))
    for point in entry_points(group=GROUP, name=drafter_type):
        return _third_party(name, point)
    raise ConfigError(f"drafters.{name}: unknown type {drafter_type!r}; expected one of: {', '.join(types())}")


def _third_party(name: str, point: EntryPoint) -> Loader:
    try:
        loader = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"drafters.{name}: type {point.name} ({point.value}) cannot be imported: {error}") from error
    if not callable(loader):
        raise ConfigError(f"drafters.{name}: type {point.name} ({point.value}) is not a loader (name, options, host)")
    return cast(Loader, loader)
