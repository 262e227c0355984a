"""Every number that an operator sees, in a registry of the application's own. vLLM's names: ``vllm_names``."""

from __future__ import annotations

from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from specproxy.server.upstream_metrics import UpstreamMetrics
from specproxy.server.vllm_names import VllmNames, aliases
from specproxy.vocabulary import RequestRecord
from specproxy.wire.frames import Hello, Stats

WHERE = ("route", "drafter", "policy")
"""Labels of whatever belongs to a request: its route, the drafters it may use (or ``off``), its policy's revision."""

SHORT_REVISION = 12

_REVISION = ("route", "policy", "phase")

_TOKEN_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.5)
"""Per-token times: an accepted burst spreads one step over several tokens, so these reach below a step's time."""

_FIRST_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 60.0)
_WHOLE_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0)
_RATE = (5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 750.0, 1000.0, 2000.0, 5000.0)


class _Makers(NamedTuple):
    """Makes instruments of a registry, with our prefix."""

    registry: CollectorRegistry

    def counter(self, name: str, help_text: str, labels: tuple[str, ...] = WHERE) -> Counter:
        return Counter(f"specproxy_{name}", help_text, labels, registry=self.registry)

    def gauge(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"specproxy_{name}", help_text, labels, registry=self.registry)

    def histogram(
        self, name: str, help_text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = WHERE
    ) -> Histogram:
        return Histogram(f"specproxy_{name}", help_text, labels, buckets=buckets, registry=self.registry)


class Metrics:
    """The instruments, and how a request's record and the engine's frames are booked on them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        make = _Makers(registry)
        counter, gauge, histogram = make.counter, make.gauge, make.histogram
        self.requests = counter("requests", "Requests answered, by HTTP status.", (*WHERE, "status"))
        self.endings = counter("endings", "Answers ended, by finish reason.", (*WHERE, "finish_reason"))
        self.structured = counter("structured_answers", "Answers to a schema, by verdict.", ("route", "verdict"))
        self.tool_calls = counter("tool_calls", "Tool calls in answers, by verdict.", ("route", "verdict"))
        self.first_token = histogram("time_to_first_token_seconds", "Arrival to first token.", _FIRST_S)
        self.per_token = histogram("inter_token_latency_seconds", "Time per token after the first.", _TOKEN_S)
        self.duration = histogram("request_duration_seconds", "Arrival to end of the answer.", _WHOLE_S)
        self.queued = histogram("queue_seconds", "Arrival at the engine to first step.", _FIRST_S)
        self.rate = histogram("tokens_per_second", "Generated tokens per second of a request, after the first.", _RATE)
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that ended.")
        self.cached_tokens = counter("cached_tokens", "Prompt tokens that came from cached pages.")
        self.generation_tokens = counter("generation_tokens", "Generated tokens, when they arrive.")
        self.draft_steps = counter("draft_steps", "Verifying steps that had a draft.")
        self.drafted = counter("draft_tokens", "Drafted tokens.")
        self.accepted = counter("accepted_tokens", "Drafted tokens that the target sampled itself.")
        self.drafted_at = counter("draft_tokens_at", "Drafted tokens by depth.", (*WHERE, "position"))
        self.accepted_at = counter("accepted_tokens_at", "Accepted tokens by depth.", (*WHERE, "position"))
        self.step = histogram("step_seconds", "Time of an engine step.", _TOKEN_S, ("kind",))
        self.steps = counter("engine_steps", "Engine steps.", ())
        self.in_flight = gauge("sequences_in_flight", "Sequences admitted and not ended.")
        self.queue_limit = gauge("sequences_limit", "Sequences that may be in flight.")
        self.sequences = gauge("engine_sequences", "Sequences in the engine.", ("state",))
        self.pages = gauge("kv_pages", "Pages of the KV cache.", ("state",))
        self.kv_usage = gauge("kv_usage_ratio", "Share of KV pages that sequences hold, 0 to 1.")
        self.preemptions = counter("preemptions", "Sequences preempted.", ())
        self.prefix_queries = counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", ())
        self.prefix_hits = counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.", ())
        self.engine_up = gauge("engine_up", "1 while an engine process is ready.")
        self.engine_starts = counter("engine_starts", "Engine processes that became ready.", ())
        self.exactness = gauge("exactness", "1 for the rung of the numerics ladder that holds.", ("rung",))
        self.policy = gauge("policy_info", "1 for the policy set in force.", ("set",))
        self.regex_timeouts = gauge("policy_regex_timeouts", "Searches of policy conditions that ran out of time.")
        self.policy_errors = counter("policy_reload_errors", "Policy reloads refused.", ())
        self.policy_reloads = counter("policy_reloads", "Policy sets that came into force, the first included.", ())
        self.captured = counter("captured_records", "Answers written for training.", ())
        self.capture_dropped = counter("capture_dropped_records", "Answers not written, by reason.", ("reason",))
        self.audits = counter("audits", "Audited answers, by verdict.", ("route", "verdict"))
        self.hard_mismatches = counter("hard_mismatches", "Answers that are not the target's.", ("route", "drafter"))
        self.shadow_pairs = counter("shadow_pairs", "Requests computed again in both arms.", ("route", "tokens"))
        self.shadow_dropped = counter("shadow_dropped", "Requests not compared, by reason.", ("route", "reason"))
        self.shadow_waiting = gauge("shadow_waiting", "Requests that wait to be computed again, or are.")
        self.cost = histogram("device_seconds", "Time in the engine of an answer, by those sharing it.", _WHOLE_S)
        self.phase = gauge("gate_phase", "1 for the phase of what serves and of what is on its way.", _REVISION)
        self.share = gauge("gate_share", "Share of conversations that a revision serves.", ("route", "policy"))
        self.gate_moves = counter("gate_moves", "Moves of revisions, by where to and who.", ("route", "to", "by"))
        self.killed = gauge("speculation_killed", "1 where a kill switch is on.", ("route", "drafter"))
        self.speedup = gauge("speedup_ratio", "Speed now over that of the plain hold-out.", ("route",))
        self.upstreams = UpstreamMetrics(registry)
        self._totals: dict[str, int] = {}

    def add_vllm_names(self, model: str) -> None:
        """Offer the same numbers under vLLM's names, for ``model``."""
        self.registry.register(VllmNames(model, aliases(self)))

    def engine_ready(self, hello: Hello) -> None:
        """An engine process became ready."""
        self.engine_up.set(1)
        self.engine_starts.inc()
        self.exactness.clear()
        self.exactness.labels(hello.numerics.exactness).set(1)
        self.pages.labels("total").set(hello.num_pages)

    def policy_in_force(self, revision: str) -> None:
        """Another policy set decides from now on."""
        self.policy_reloads.inc()
        self.policy.clear()
        self.policy.labels(revision[:SHORT_REVISION]).set(1)

    def engine_lost(self) -> None:
        """The engine process is gone, and what it held with it; the next one counts from nought."""
        self._totals.clear()
        self.engine_up.set(0)
        for state in ("running", "waiting", "background"):
            self.sequences.labels(state).set(0)
        self.pages.labels("used").set(0)
        self.kv_usage.set(0)

    def engine_stats(self, stats: Stats) -> None:
        """A Stats frame."""
        self.sequences.labels("running").set(stats.running)
        self.sequences.labels("waiting").set(stats.waiting)
        self.sequences.labels("background").set(stats.background)
        self.pages.labels("used").set(stats.pages_used)
        self.pages.labels("cached").set(stats.pages_cached)
        self.pages.labels("total").set(stats.pages_total)
        self.kv_usage.set(stats.pages_used / stats.pages_total if stats.pages_total else 0.0)
        self._book("preemptions", self.preemptions, stats.preemptions)
        self._book("queries", self.prefix_queries, stats.prefix_queries)
        self._book("hits", self.prefix_hits, stats.prefix_hits)
        self._book("steps", self.steps, stats.steps)
        for kind, seconds in stats.step_s:
            self.step.labels(kind).observe(seconds)

    def passed_through(self, record: RequestRecord, allowed: str) -> None:
        """An upstream answered: book what the engine's tokens would have told as they came."""
        where = (record.route, allowed, record.revision[:SHORT_REVISION])
        self.generation_tokens.labels(*where).inc(record.completion_tokens)
        if record.ttft_s is not None:
            self.first_token.labels(*where).observe(record.ttft_s)

    def request_ended(self, record: RequestRecord, allowed: str) -> None:
        """Book a request's record. ``allowed``: the drafters that it might have used."""
        where = (record.route, allowed, record.revision[:SHORT_REVISION])
        self.requests.labels(*where, str(record.status)).inc()
        self.duration.labels(*where).observe(record.duration_s)
        if not record.prompt_tokens:
            return
        for reason in record.finish_reasons:
            self.endings.labels(*where, reason).inc()
        for verdict in record.structured:
            self.structured.labels(record.route, verdict).inc()
        for verdict in record.tool_calls:
            self.tool_calls.labels(record.route, verdict).inc()
        self.prompt_tokens.labels(*where).inc(record.prompt_tokens)
        self.cached_tokens.labels(*where).inc(record.cached_tokens)
        self.queued.labels(*where).observe(record.queued_s)
        for counts in record.drafts:
            mine = (record.route, counts.drafter, record.revision[:SHORT_REVISION])
            self.draft_steps.labels(*mine).inc(counts.steps)
            self.drafted.labels(*mine).inc(counts.drafted)
            self.accepted.labels(*mine).inc(counts.accepted)
            for depth, count in enumerate(counts.drafted_at):
                self.drafted_at.labels(*mine, str(depth)).inc(count)
            for depth, count in enumerate(counts.accepted_at):
                self.accepted_at.labels(*mine, str(depth)).inc(count)

    def _book(self, name: str, counter: Counter, total: int) -> None:
        """Add what a counter of the engine grew by; it starts again with every process."""
        counter.inc(max(0, total - self._totals.get(name, 0)))
        self._totals[name] = total
