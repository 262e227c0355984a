"""What the handlers share, in one place with types."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from specproxy.config.keys import KeyRing
from specproxy.config.schema import StartConfig
from specproxy.errors import EngineUnavailable
from specproxy.policy.watch import PolicyStore
from specproxy.server.accounting import Account
from specproxy.server.admission import Admission
from specproxy.server.api import ApiContext
from specproxy.server.capture import Captures
from specproxy.server.engine_backend import EngineBackend
from specproxy.server.gating.gate import Gate
from specproxy.server.generation import Generation
from specproxy.server.metrics import Metrics
from specproxy.server.quotas import Pass, Quotas
from specproxy.server.tracing import Tracing
from specproxy.wire.frames import Hello

MAX_UNKNOWN_FIELDS = 256
"""Names that are remembered as already logged: clients could send any number of them."""


@dataclass
class Served:
    """What exists once the engine has said Hello. ``created``: Unix seconds."""

    context: ApiContext
    hello: Hello
    created: int

    @property
    def fingerprint(self) -> str:
        """OpenAI's ``system_fingerprint``: a short constant for all that may change an answer, so not the policy."""
        parts = f"{self.hello.model.fingerprint}/{self.hello.numerics.fingerprint}"
        return "fp_" + hashlib.blake2b(parts.encode(), digest_size=5).hexdigest()


@dataclass
class State:
    """The application's parts. ``served`` is ``None`` while the model loads; ``active`` is what a drain waits for;
    ``captures`` keeps answers of routes that say so; ``gate`` decides, and moves what the policy files change;
    ``admin`` is where operators are answered, as ``--admin`` takes it; ``quotas``: what keys with limits may still
    use; ``tracing`` makes a span of each request, where traces are collected."""

    config: StartConfig
    keys: KeyRing
    policies: PolicyStore
    backend: EngineBackend
    metrics: Metrics
    admission: Admission
    captures: Captures
    gate: Gate
    served: Served | None = None
    draining: bool = False
    admin: str | None = None
    tracing: Tracing | None = None
    quotas: Quotas = field(init=False)
    active: set[Generation] = field(default_factory=set)
    unknown_fields: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.quotas = Quotas(self.keys.limits)

    def need_served(self) -> Served:
        """What is served. Raises EngineUnavailable while it loads."""
        if self.served is None:
            raise EngineUnavailable(self.backend.problem or "the model is still loading", retry_after_s=1.0)
        return self.served

    def log_unknown(self, fields: Sequence[str]) -> None:
        """Log each request field that nothing here knows, once: it is ignored, as OpenAI's clients expect."""
        for name in fields:
            if name not in self.unknown_fields and len(self.unknown_fields) < MAX_UNKNOWN_FIELDS:
                self.unknown_fields.add(name)
                structlog.get_logger().warning("unknown request field ignored", field=name[:100])


STATE: web.AppKey[State] = web.AppKey("state", State)
REQUEST_ID: web.RequestKey[str] = web.RequestKey("request_id", str)
KEY_ID: web.RequestKey[str] = web.RequestKey("key_id", str)
PASS: web.RequestKey[Pass] = web.RequestKey("pass", Pass)
"""What a key with limits may still use; its headers go out with whatever the answer becomes."""
ACCOUNT: web.RequestKey[Account] = web.RequestKey("account", Account)
DECIDED: web.RequestKey[dict[str, str]] = web.RequestKey("decided", dict)
"""Headers that say what the policy decided; they go out with whatever the answer becomes."""
