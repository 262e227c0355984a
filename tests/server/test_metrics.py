"""Metrics: a record is booked under its labels, and vLLM's names show the same numbers."""

from __future__ import annotations

from prometheus_client.exposition import generate_latest

from specproxy.server.accounting import Account
from specproxy.server.metrics import Metrics
from specproxy.vocabulary import Decision, DraftCounts, SequenceStats
from specproxy.wire.frames import Stats


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    """One sample of the registry."""
    return metrics.registry.get_sample_value(name, labels)


def answered(metrics: Metrics, route: str = "chat") -> Account:
    """A request that got five tokens in two deltas."""
    account = Account(metrics, "req-1", "/v1/chat/completions")
    decision = Decision(route, "a" * 64, drafters=("ngram", "draft"))
    account.decided(decision, model="house", seed=1, stream=True, prompt_tokens=30)
    account.tokens(0, 1)
    account.tokens(0, 4)
    counts = [DraftCounts("ngram", 2, 6, 3, [2, 2, 2], [2, 1, 0])]
    account.add_stats([SequenceStats(cached_tokens=16, steps=3, drafts=counts, queued_s=0.01)])
    account.record.finish_reasons = ["stop"]
    account.close()
    return account


def test_a_request_is_booked_under_route_drafters_and_short_revision() -> None:
    """The three labels that every request metric has."""
    metrics = Metrics()
    answered(metrics)
    where = {"route": "chat", "drafter": "ngram,draft", "policy": "a" * 12}
    assert sample(metrics, "specproxy_requests_total", **where, status="200") == 1
    assert sample(metrics, "specproxy_generation_tokens_total", **where) == 5
    assert sample(metrics, "specproxy_time_to_first_token_seconds_count", **where) == 1
    assert sample(metrics, "specproxy_inter_token_latency_seconds_count", **where) == 4
    assert sample(metrics, "specproxy_tokens_per_second_count", **where) == 1


def test_drafts_are_booked_under_the_drafter_that_made_them() -> None:
    """Acceptance belongs to one drafter, by depth."""
    metrics = Metrics()
    answered(metrics)
    where = {"route": "chat", "drafter": "ngram", "policy": "a" * 12}
    assert sample(metrics, "specproxy_draft_tokens_total", **where) == 6
    assert sample(metrics, "specproxy_accepted_tokens_total", **where) == 3
    assert sample(metrics, "specproxy_accepted_tokens_at_total", **where, position="1") == 1


def test_vllm_names_sum_over_our_labels() -> None:
    """A dashboard made for vLLM sees all routes together."""
    metrics = Metrics()
    metrics.add_vllm_names("house")
    answered(metrics, "chat")
    answered(metrics, "code")
    model = {"model_name": "house", "engine": "0"}
    assert sample(metrics, "vllm:generation_tokens_total", **model) == 10
    assert sample(metrics, "vllm:request_success_total", **model, finished_reason="stop") == 2
    assert sample(metrics, "vllm:inter_token_latency_seconds_count", **model) == 8
    assert sample(metrics, "vllm:inter_token_latency_seconds_bucket", **model, le="+Inf") == 8
    assert sample(metrics, "vllm:spec_decode_num_accepted_tokens_per_pos_total", **model, position="0") == 4
    assert b"vllm:time_to_first_token_seconds_bucket" in generate_latest(metrics.registry)


def test_vllm_counters_show_nought_before_they_count() -> None:
    """A dashboard's rate() needs the first sample to be there."""
    metrics = Metrics()
    metrics.add_vllm_names("house")
    assert sample(metrics, "vllm:spec_decode_num_drafts_total", model_name="house", engine="0") == 0


def test_engine_counters_go_on_over_a_restart() -> None:
    """An engine counts from its start; the server's counters never fall."""
    metrics = Metrics()
    metrics.engine_stats(Stats(1, 0, 0, 5, 2, 10, 3, 100, 40, 7))
    metrics.engine_stats(Stats(1, 0, 0, 5, 2, 10, 4, 110, 50, 9))
    assert sample(metrics, "specproxy_preemptions_total") == 4
    assert sample(metrics, "specproxy_kv_usage_ratio") == 0.5
    metrics.engine_lost()
    assert sample(metrics, "specproxy_kv_usage_ratio") == 0
    metrics.engine_stats(Stats(1, 0, 0, 5, 2, 10, 1, 10, 5, 2))
    assert sample(metrics, "specproxy_prefix_cache_queries_total") == 120
