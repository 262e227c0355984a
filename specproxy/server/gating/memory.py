"""What drafters hold of a device's memory beside the target, as the engine told when it loaded them."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from specproxy.vocabulary import Decision
from specproxy.wire.frames import Hello


def held(decision: Decision, hello: Hello) -> int:
    """Bytes of all drafters that the decision may use: weights, and KV for as many tokens as the target has."""
    used = [info for info in hello.drafters if info.name in decision.drafters]
    return sum(info.weight_bytes + info.kv_bytes for info in used)


class MemoryGauge:
    """``specproxy_drafter_memory_bytes``."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gauge = Gauge(
            "specproxy_drafter_memory_bytes",
            "What a loaded drafter holds beside the target.",
            ("drafter", "kind"),
            registry=registry,
        )

    def show(self, hello: Hello | None) -> None:
        """The drafters that are loaded now; none while there is no engine."""
        self._gauge.clear()
        for info in () if hello is None else hello.drafters:
            self._gauge.labels(info.name, "weights").set(info.weight_bytes)
            self._gauge.labels(info.name, "kv").set(info.kv_bytes)
