"""What becomes of requests to upstreams, and how these are, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from specproxy.upstream.breaker import BreakerState
from specproxy.upstream.client import Upstream
from specproxy.upstream.errors import Kind

_FIRST_BYTE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class UpstreamMetrics:
    """An ``Observer`` of upstreams that counts."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"specproxy_{name}", text, labels, registry=registry)

        self.requests = counter("upstream_requests", "Answers of upstreams, by HTTP status.", "upstream", "status")
        self.errors = counter("upstream_errors", "Requests without a whole answer, by kind.", "upstream", "kind")
        self.opened = counter("upstream_breaker_opened", "How often a breaker opened.", "upstream")
        self.fallbacks = counter(
            "backend_fallbacks", "Requests handed on to a route's next backend.", "route", "backend", "next", "reason"
        )
        self.waits = Histogram(
            "specproxy_upstream_first_byte_seconds",
            "Request to the first of a good answer.",
            ("upstream",),
            buckets=_FIRST_BYTE_S,
            registry=registry,
        )

    def request(self, upstream: str, status: int) -> None:
        """As the protocol says."""
        self.requests.labels(upstream, str(status)).inc()

    def first_byte(self, upstream: str, seconds: float) -> None:
        """As the protocol says."""
        self.waits.labels(upstream).observe(seconds)

    def error(self, upstream: str, kind: Kind) -> None:
        """As the protocol says."""
        self.errors.labels(upstream, kind).inc()

    def breaker(self, upstream: str, state: BreakerState) -> None:
        """As the protocol says; the state itself is read at each scrape."""
        if state == "open":
            self.opened.labels(upstream).inc()


class UpstreamStates(Collector):
    """Reads, at each scrape, how upstreams are and what they count of their own speculation."""

    def __init__(self, upstreams: Mapping[str, Upstream]) -> None:
        self._upstreams = upstreams

    def describe(self) -> list[Metric]:
        """Nothing: the names collide with none of ours, so registering need not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Gauges of each upstream, then the counters of those that have any."""
        up = GaugeMetricFamily("specproxy_upstream_up", "1 where it would get a request now.", labels=["upstream"])
        running = GaugeMetricFamily("specproxy_upstream_in_flight", "Requests at an upstream.", labels=["upstream"])
        limit = GaugeMetricFamily("specproxy_upstream_limit", "Requests that may be there.", labels=["upstream"])
        breaker = GaugeMetricFamily(
            "specproxy_upstream_breaker", "1 for the breaker's state.", labels=["upstream", "state"]
        )
        for name, upstream in self._upstreams.items():
            up.add_metric([name], float(upstream.refusal() is None))
            running.add_metric([name], upstream.in_flight)
            limit.add_metric([name], upstream.config.max_connections)
            for state in get_args(BreakerState):
                breaker.add_metric([name, state], float(upstream.breaker.state == state))
        yield from (up, running, limit, breaker)
        yield from self._speculation()

    def _speculation(self) -> Iterator[Metric]:
        """An upstream's own counters; they begin again where its engine does."""
        names = ("drafts", "draft_tokens", "accepted_tokens")
        texts = ("Verifying steps that had a draft.", "Drafted tokens.", "Drafted tokens that were accepted.")
        whole = [
            CounterMetricFamily(f"specproxy_upstream_{name}", f"At an upstream: {text}", labels=["upstream"])
            for name, text in zip(names, texts, strict=True)
        ]
        by_depth = CounterMetricFamily(
            "specproxy_upstream_accepted_tokens_at",
            "At an upstream: accepted tokens by depth.",
            labels=["upstream", "position"],
        )
        for name, upstream in self._upstreams.items():
            if (counts := upstream.counts) is None:
                continue
            for family, value in zip(whole, (counts.drafts, counts.drafted, counts.accepted), strict=True):
                family.add_metric([name], value)
            for depth, value in enumerate(counts.accepted_at):
                by_depth.add_metric([name, str(depth)], value)
        yield from (*whole, by_depth)
