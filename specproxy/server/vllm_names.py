"""vLLM's metric names for our numbers, so that dashboards made for it work unchanged.

Nothing is counted twice: at each scrape the values are read from our own instruments and summed over the labels that
vLLM does not have. Names and labels are those of vLLM's V1 engine (docs, "Production metrics").
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from specproxy.server.metrics import Metrics


@dataclass(frozen=True)
class Alias:
    """``name`` (without ``vllm:``) shows ``source``; only samples with the label values of ``only``, summed over every
    label but ``keep``, which maps our label to vLLM's."""

    name: str
    source: MetricWrapperBase
    keep: tuple[tuple[str, str], ...] = ()
    only: tuple[tuple[str, str], ...] = ()


def aliases(metrics: Metrics) -> list[Alias]:
    """What vLLM calls our instruments."""
    return [
        Alias("num_requests_running", metrics.sequences, only=(("state", "running"),)),
        Alias("num_requests_waiting", metrics.sequences, only=(("state", "waiting"),)),
        Alias("kv_cache_usage_perc", metrics.kv_usage),
        Alias("num_preemptions", metrics.preemptions),
        Alias("prefix_cache_queries", metrics.prefix_queries),
        Alias("prefix_cache_hits", metrics.prefix_hits),
        Alias("prompt_tokens", metrics.prompt_tokens),
        Alias("generation_tokens", metrics.generation_tokens),
        Alias("request_success", metrics.endings, keep=(("finish_reason", "finished_reason"),)),
        Alias("time_to_first_token_seconds", metrics.first_token),
        Alias("inter_token_latency_seconds", metrics.per_token),
        Alias("e2e_request_latency_seconds", metrics.duration),
        Alias("request_queue_time_seconds", metrics.queued),
        Alias("spec_decode_num_drafts", metrics.draft_steps),
        Alias("spec_decode_num_draft_tokens", metrics.drafted),
        Alias("spec_decode_num_accepted_tokens", metrics.accepted),
        Alias("spec_decode_num_accepted_tokens_per_pos", metrics.accepted_at, keep=(("position", "position"),)),
    ]


class VllmNames(Collector):
    """Collects the aliases, labelled ``model_name`` and ``engine`` as vLLM's are."""

    def __init__(self, model: str, entries: list[Alias]) -> None:
        self._model = model
        self._entries = entries

    def describe(self) -> list[Metric]:
        """Nothing: the names are fixed and collide with none of ours, so registering need not collect."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One family per alias."""
        for alias in self._entries:
            for metric in alias.source.collect():
                yield self._renamed(alias, metric)

    def _renamed(self, alias: Alias, metric: Metric) -> Metric:
        name, text = f"vllm:{alias.name}", metric.documentation
        labels = ["model_name", "engine", *(theirs for _, theirs in alias.keep)]
        sums = _summed(alias, metric)
        if metric.type == "histogram":
            histogram = HistogramMetricFamily(name, text, labels=labels)
            for values, samples in sums.items():
                buckets = [(le, count) for (suffix, le), count in samples.items() if suffix == "_bucket"]
                histogram.add_metric([self._model, "0", *values], buckets, samples[("_sum", "")])
            return histogram
        family = CounterMetricFamily if metric.type == "counter" else GaugeMetricFamily
        plain = family(name, text, labels=labels)
        suffix = "_total" if metric.type == "counter" else ""
        for values, samples in sums.items():
            plain.add_metric([self._model, "0", *values], samples[(suffix, "")])
        return plain


def _summed(alias: Alias, metric: Metric) -> dict[tuple[str, ...], dict[tuple[str, str], float]]:
    """Samples by the kept labels' values, then by (suffix of the sample's name, bucket)."""
    sums: dict[tuple[str, ...], dict[tuple[str, str], float]] = defaultdict(lambda: defaultdict(float))
    if not alias.keep and metric.type != "histogram":
        sums[()]  # A counter that has not counted yet shows 0 rather than nothing.
    for sample in metric.samples:
        if all(sample.labels.get(label) == value for label, value in alias.only):
            values = tuple(sample.labels[ours] for ours, _ in alias.keep)
            suffix = sample.name.removeprefix(metric.name)
            sums[values][(suffix, sample.labels.get("le", ""))] += sample.value
    return sums
