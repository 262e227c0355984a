"""Catalogue: the names that a policy may refer to, and what is known of what they stand for.

Made from the start configuration alone (``specproxy policy check``), then sharpened by what the engine reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import Struct

from specproxy.config.schema import StartConfig
from specproxy.vocabulary import DrafterInfo, Exactness, ModelInfo, Numerics

ENGINE = "engine"
"""The backend that is our own engine."""

AUTO = "auto"
OFF = "off"
_ORDER = {"grammar": 0, "prediction": 1, "suffix": 2, "ngram": 3}
"""Drafters that cost next to nothing go first; every model-based type comes after them."""


class DrafterSpec(Struct, frozen=True):
    """A drafter as policies see it. ``None``: not known before the engine has loaded it (``window``: the target's)."""

    name: str
    type: str
    max_k: int | None = None
    window: int | None = None
    fingerprint: str = ""


class Catalogue(Struct, frozen=True, kw_only=True):
    """Declared drafters in the order that ``auto`` means, upstreams, and what the engine can do (``None``: unknown).

    ``trees``: draft trees keep the exactness that the engine has. ``captures``: there is a directory for what routes
    with ``capture: on`` answer.
    """

    drafters: tuple[DrafterSpec, ...] = ()
    upstreams: tuple[str, ...] = ()
    exactness: Exactness | None = None
    trees: bool = True
    max_model_len: int | None = None
    captures: bool = False

    @classmethod
    def from_config(cls, config: StartConfig) -> Catalogue:
        """What the start configuration alone says."""
        specs = [DrafterSpec(name, item.type, item.max_k) for name, item in config.drafters.items()]
        length = config.model.max_model_len
        return cls(
            drafters=_ordered(specs),
            upstreams=tuple(config.upstreams),
            max_model_len=length if isinstance(length, int) else None,
            captures=bool(config.capture.dir),
        )

    def with_engine(
        self, drafters: Sequence[DrafterInfo], numerics: Numerics | None = None, model: ModelInfo | None = None
    ) -> Catalogue:
        """The same with what the engine's Hello reports: the drafters that are loaded, and no others."""
        specs = [DrafterSpec(d.name, d.type, d.max_k, d.window, d.fingerprint) for d in drafters]
        return msgspec.structs.replace(
            self,
            drafters=_ordered(specs),
            exactness=self.exactness if numerics is None else numerics.exactness,
            trees=self.trees if numerics is None else numerics.trees or numerics.exactness == "numeric",
            max_model_len=self.max_model_len if model is None else model.max_model_len,
        )

    @property
    def drafter_names(self) -> tuple[str, ...]:
        """Names, cheapest first."""
        return tuple(spec.name for spec in self.drafters)

    @property
    def backend_names(self) -> tuple[str, ...]:
        """The engine and every upstream."""
        return (ENGINE, *self.upstreams)

    def drafter(self, name: str) -> DrafterSpec | None:
        """The drafter called ``name``."""
        return next((spec for spec in self.drafters if spec.name == name), None)


def _ordered(specs: Iterable[DrafterSpec]) -> tuple[DrafterSpec, ...]:
    """Cheapest first; declaration order among equals."""
    return tuple(sorted(specs, key=lambda spec: _ORDER.get(spec.type, len(_ORDER))))
