"""Spans of requests, from records to what a collector gets."""

from __future__ import annotations

import gzip
import importlib.util
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from specproxy.errors import ConfigError
from specproxy.server.tracing import ENDPOINTS, Tracing, tracing
from specproxy.vocabulary import DraftCounts, RequestRecord

WANTED = "opentelemetry.exporter.otlp.proto.http"
needs_extra = pytest.mark.skipif(
    importlib.util.find_spec("opentelemetry") is None and not os.environ.get("CI"),
    reason="opentelemetry is not here: pip install 'specproxy[otel]'",
)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def record() -> RequestRecord:
    """A streamed answer of nine tokens, five of them drafted."""
    return RequestRecord(
        "req_1", "/v1/chat/completions", "house", "code", "abcdef", "metadata.kind is code", "canary", 7, True, 1000.0,
        finish_reasons=["stop"], prompt_tokens=20, cached_tokens=16, completion_tokens=9, ttft_s=0.05, duration_s=0.25,
        steps=4, drafted=8, accepted=5, drafts=[DraftCounts("ngram")], exactness="bitwise",
    )  # fmt: skip


@needs_extra
def test_a_span_tells_what_the_record_knows(record: RequestRecord) -> None:
    """One span, below the caller's, with the request's times, GenAI's names, and ours where there are none."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    Tracing(provider).ended(record, {"Traceparent": f"00-{TRACE}-{SPAN}-01", "Authorization": "Bearer secret"})
    (span,) = exporter.get_finished_spans()
    assert (span.name, span.kind.name, span.status.status_code.name) == ("chat house", "SERVER", "UNSET")
    assert (span.start_time, span.end_time) == (1000 * 10**9, 1000 * 10**9 + 250_000_000)
    assert span.parent is not None
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, SPAN)
    said = dict(span.attributes or {})
    assert said["gen_ai.usage.output_tokens"] == 9
    assert said["gen_ai.response.finish_reasons"] == ("stop",)
    assert said["specproxy.spec.accepted_tokens"] == 5
    assert said["specproxy.spec.drafters"] == ("ngram",)
    assert said["specproxy.arm"] == "canary"
    assert "error.type" not in said
    assert "secret" not in span.to_json()


@needs_extra
@pytest.mark.parametrize(("status", "outcome"), [(500, "ERROR"), (400, "UNSET")])
def test_only_our_own_faults_are_errors(record: RequestRecord, status: int, outcome: str) -> None:
    """A refused request has its reason; its span is no error of the server, as HTTP's conventions want it."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    record.status, record.error = status, "some_code"
    Tracing(provider).ended(record, {})
    (span,) = exporter.get_finished_spans()
    assert (span.status.status_code.name, dict(span.attributes or {})["error.type"]) == (outcome, "some_code")
    assert span.parent is None


@needs_extra
def test_a_collector_gets_the_spans(record: RequestRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    """OTLP over HTTP, to where the environment says, under the service's name."""
    got: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append((self.path, gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv(ENDPOINTS[1], f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_SERVICE_NAME", "the-proxy")
        made = tracing(os.environ)
        assert made is not None
        made.ended(record, {})
        made.close()
        collector.shutdown()
    ((path, body),) = got
    assert path == "/v1/traces"
    assert all(words in body for words in (b"the-proxy", b"chat house", b"specproxy.route"))


def test_without_a_collector_there_are_no_spans() -> None:
    """No variable, or the one that switches OpenTelemetry off: nothing is imported and nothing made."""
    assert tracing({}) is None
    assert tracing({ENDPOINTS[0]: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "TRUE"}) is None


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for traces without the extra is told which variable asks, and what to install."""
    monkeypatch.setitem(sys.modules, f"{WANTED}.trace_exporter", None)
    with pytest.raises(ConfigError, match=r"OTEL_EXPORTER_OTLP_ENDPOINT .*specproxy\[otel\]"):
        tracing({ENDPOINTS[1]: "http://127.0.0.1:1"})
