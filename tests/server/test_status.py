"""/health, /ready, /metrics and the log: what an operator sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx

Body = Callable[..., dict[str, Any]]


def test_ready_says_what_is_loaded_and_how_exact_it_is(server: Any) -> None:
    """Engine, drafters, numerics, policy revision, and no error."""
    body = server.ready()
    assert body["status"] == "ready"
    assert body["engine"]["state"] == "ready"
    assert body["engine"]["max_model_len"] == 2048
    assert {drafter["type"] for drafter in body["engine"]["drafters"]} >= {"ngram", "prediction", "draft_model"}
    assert body["exactness"] in ("bitwise", "bitwise-fixed")
    assert len(body["policy"]["revision"]) == 12
    assert body["policy"]["error"] is None


def test_health_is_ok(server: Any) -> None:
    """The process is of use."""
    assert server.get("/health").json() == {"status": "ok"}


def test_requests_show_in_the_metrics_under_route_drafter_and_policy(
    server: Any, http: httpx.Client, chat_body: Body
) -> None:
    """And under vLLM's names."""
    route = http.post("/v1/chat/completions", json=chat_body()).headers["x-specproxy-route"]
    assert server.metric("specproxy_requests_total", route=route, status="200") >= 1
    assert server.metric("specproxy_time_to_first_token_seconds_count", route=route) >= 1
    assert server.metric("specproxy_exactness") == 1
    assert server.metric("specproxy_engine_up") == 1
    assert server.metric("vllm:generation_tokens_total", model_name="house") > 0
    assert server.metric("vllm:e2e_request_latency_seconds_count") > 0
    assert server.metric("vllm:spec_decode_num_drafts_total") >= 0


def test_a_request_leaves_one_log_line_without_its_text(server: Any, http: httpx.Client, chat_body: Body) -> None:
    """Ids, counts and times, never a body."""
    secret = "xyzzy-plugh"
    body = chat_body(messages=[{"role": "user", "content": secret}])
    http.post("/v1/chat/completions", json=body, headers={"x-request-id": "log-line-1"})
    lines = [line for line in server.events("request") if line["request_id"] == "log-line-1"]
    assert len(lines) == 1
    assert lines[0]["status"] == 200
    assert lines[0]["completion_tokens"] > 0
    assert lines[0]["seed"] == 7
    assert secret not in server.log.read_text()
