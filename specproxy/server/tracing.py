"""A span for each request, for whoever collects OpenTelemetry traces: the optional extra ``specproxy[otel]``.

There are spans where the environment names a collector, by OpenTelemetry's own variables. A span is made of the
request's record once that is complete, below the caller's where the request carries a ``traceparent``. It has times
and counts, never what was asked or answered. Names are those of the GenAI semantic conventions (in development: they
stand here and nowhere else), and ``specproxy.*`` where these have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from specproxy import __version__
from specproxy.errors import ConfigError
from specproxy.vocabulary import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.util.types import AttributeValue

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
"""Variables that name a collector; it is spoken to by OTLP over HTTP."""

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
_NS = 10**9


class Tracing:
    """Makes spans with a provider of the OpenTelemetry SDK. Only where the extra is installed."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("specproxy", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def ended(self, record: RequestRecord, headers: Mapping[str, str]) -> None:
        """A request is over: hand its span to the exporter, which sends it from a thread of its own."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = OPERATIONS.get(record.endpoint, record.endpoint)
        parent = {name.lower(): value for name, value in headers.items() if name.lower().startswith("trace")}
        span = self._tracer.start_span(
            f"{operation} {record.model}".strip(),
            self._propagator.extract(parent),
            SpanKind.SERVER,
            {name: value for name, value in _attributes(record, operation).items() if value not in (None, "", ())},
            start_time=int(record.started * _NS),
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR, record.error))
        span.end(int((record.started + record.duration_s) * _NS))

    def close(self) -> None:
        """Send what is left. Blocks for as long as the exporter's timeout allows."""
        self._provider.shutdown()


def tracing(env: Mapping[str, str]) -> Tracing | None:
    """What the environment asks for; ``None`` where it names no collector or says OTEL_SDK_DISABLED=true.

    Raises ConfigError where it names one and the extra is not installed.
    """
    asked = next((name for name in ENDPOINTS if env.get(name)), None)
    if asked is None or env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as missing:
        raise ConfigError(
            f"{asked} asks for traces, and {missing.name} is not installed: pip install 'specproxy[otel]', or unset it"
        ) from None
    name = env.get("OTEL_SERVICE_NAME", "specproxy")
    provider = TracerProvider(resource=Resource.create({"service.name": name, "service.version": __version__}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _attributes(record: RequestRecord, operation: str) -> dict[str, AttributeValue | None]:
    return {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "specproxy",
        "gen_ai.request.model": record.model,
        "gen_ai.request.seed": record.seed if record.model else None,
        "gen_ai.request.stream": record.stream,
        "gen_ai.response.finish_reasons": tuple(record.finish_reasons),
        "gen_ai.response.time_to_first_chunk": record.ttft_s,
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "http.request.method": "POST",
        "http.response.status_code": record.status,
        "url.path": record.endpoint,
        "error.type": record.error,
        "specproxy.request_id": record.request_id,
        "specproxy.route": record.route,
        "specproxy.policy.revision": record.revision,
        "specproxy.policy.rule": record.rule,
        "specproxy.arm": record.arm,
        "specproxy.reason": record.reason,
        "specproxy.exactness": record.exactness,
        "specproxy.queue_s": record.queued_s,
        "specproxy.device_s": record.device_s,
        "specproxy.spec.steps": record.steps,
        "specproxy.spec.drafted_tokens": record.drafted,
        "specproxy.spec.accepted_tokens": record.accepted,
        "specproxy.spec.drafters": tuple(counts.drafter for counts in record.drafts),
    }
