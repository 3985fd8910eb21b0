"""Traces: one span for each request, one for each commit, and none unless enabled."""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.service.tracing import Tracing, start_tracing
from tests.conftest import NewDatabase
from tests.support.services import Process, serving

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def test_reserve_when_traced_then_its_request_and_its_commit_have_a_span(database_url: str) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "bot-1:17"}
    with serving(database_url, tracing=Tracing(provider)) as service:
        assert service.post("/v1/reservations", "one", headers=headers).status_code == 201
        assert service.post("/v1/reservations", None).status_code == 422
        assert service.http.get("/v1/positions/main-1").status_code == 200
        spans = exporter.get_finished_spans()
        assert "ledger_commit_seconds_count 1.0" in service.http.get("/metrics").text, "metrics count beside the spans"
    (commit,) = [span for span in spans if span.name == "ledger.commit"]
    assert commit.attributes is not None
    assert dict(commit.attributes) == {"ledger.decisions": 1, "ledger.seqs": ("main:1-1",)}
    requests = {span.name: span for span in spans if span.kind is SpanKind.SERVER}
    assert list(requests) == ["POST /v1/reservations", "GET /v1/positions/{position_id}"]
    reserve, refused = [span for span in spans if span.name == "POST /v1/reservations"]
    assert reserve.attributes is not None
    assert reserve.parent is not None
    assert (f"{reserve.parent.trace_id:032x}", f"{reserve.parent.span_id:016x}") == (TRACE, PARENT)
    assert reserve.attributes["ledger.request_id"] == "bot-1:17"
    assert reserve.attributes["http.response.status_code"] == 201
    assert refused.attributes is not None
    assert refused.attributes["http.response.status_code"] == 422
    assert refused.parent is None
    assert StatusCode.ERROR not in (reserve.status.status_code, refused.status.status_code)
    assert reserve.start_time < commit.start_time < commit.end_time < reserve.end_time  # type: ignore[operator]


def test_start_tracing_when_the_extra_is_missing_then_the_command_to_install_it_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'ledger-sizer\[otel\]'"):
        start_tracing()


class Collector(ThreadingHTTPServer):
    """A stand-in for an OTLP collector."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Intake)
        self.bodies: list[tuple[str, bytes]] = []


class Intake(BaseHTTPRequestHandler):
    """Accepts every export."""

    def do_POST(self) -> None:
        """Receive one export."""
        assert isinstance(self.server, Collector)
        self.server.bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Log nothing to standard error."""


def test_serve_when_tracing_is_switched_on_then_the_collector_gets_what_happened(
    new_database: NewDatabase, tmp_path: Path
) -> None:
    with Collector() as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        process = Process(
            new_database("sqlite"), tmp_path, SERVICE_TRACING="true", OTEL_EXPORTER_OTLP_ENDPOINT=endpoint
        )
        try:
            url = process.ready().url
            assert httpx.post(f"{url}/v1/reservations", json={}, headers={"Idempotency-Key": "k"}).status_code == 201
            assert process.stop() == 0, process.log()
        finally:
            process.close()
            collector.shutdown()
    assert {path for path, _ in collector.bodies} == {"/v1/traces"}
    sent = b"".join(body for _, body in collector.bodies)
    assert b"ledger.commit" in sent
    assert b"POST /v1/reservations" in sent
