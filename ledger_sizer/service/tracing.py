"""OpenTelemetry traces of the service, enabled by SERVICE_TRACING; needs the extra `otel`.

There is one span for each HTTP request (a child of the caller's span, if it sent a `traceparent`), and one for each
commit, which many requests share. A request's span has its `ledger.request_id`, which is also in the log of its
decision. A commit's span has the range of `seq` that it wrote in each portfolio.
"""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.model.errors import InvalidRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

_NS_PER_SECOND = 1_000_000_000
_SERVICE_NAME = "ledger-sizer"


def start_tracing() -> "Tracing":
    """Start tracing to an OTLP collector over HTTP, configured by OpenTelemetry's `OTEL_...` variables.

    Raises `InvalidRequest` where the extra `otel` is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise InvalidRequest(
            f"SERVICE_TRACING needs the extra otel ({error}): pip install 'ledger-sizer[otel]'", field="tracing"
        ) from None
    # Environment variables override the resource, the service's name included.
    resource = Resource({SERVICE_NAME: _SERVICE_NAME}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


class Tracing:
    """Creates the spans of requests and commits. provider: exports them."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace import SpanKind, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("ledger_sizer")
        self._parent_of = TraceContextTextMapPropagator().extract
        self._server, self._error = SpanKind.SERVER, StatusCode.ERROR

    def begin(self, headers: Sequence[tuple[bytes, bytes]], request_id: str) -> "Span":
        """Start the span of an HTTP request."""
        carrier = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in headers
            if name in (b"traceparent", b"tracestate")
        }
        return self._tracer.start_span(
            "HTTP", context=self._parent_of(carrier), kind=self._server, attributes={"ledger.request_id": request_id}
        )

    def end(self, span: "Span", method: str, route: str, status: int) -> None:
        """End the span of a request. route: as declared, not as requested. status: of the response."""
        span.update_name(f"{method} {route}")
        span.set_attributes(
            {"http.request.method": method, "http.route": route, "http.response.status_code": status}
        )  # fmt: skip
        if status >= 500:
            span.set_status(self._error)
        span.end()

    def trace_commit(self, records: Sequence[DecisionRecord], seconds: float) -> None:
        """Create the span of a commit that ended now and took `seconds`."""
        end_ns = time.time_ns()
        seqs: dict[str, tuple[int, int]] = {}
        for record in records:
            first, _ = seqs.get(record.portfolio, (record.seq, record.seq))
            seqs[record.portfolio] = (first, record.seq)
        attributes: dict[str, Any] = {
            "ledger.decisions": len(records),
            "ledger.seqs": [f"{name}:{first}-{last}" for name, (first, last) in seqs.items()],
        }
        start_ns = end_ns - int(seconds * _NS_PER_SECOND)
        self._tracer.start_span("ledger.commit", start_time=start_ns, attributes=attributes).end(end_ns)

    def stop(self) -> None:
        """Export the remaining spans and stop."""
        self._provider.shutdown()
