"""Hostile input over raw sockets: the service refuses it, never with a 5xx, and keeps serving."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from ledger_sizer.api.throttle import client_of
from tests.conftest import NewDatabase
from tests.support.services import Running, eventually, serving

BODY_MAX = 4096


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[Running]:
    url = module_database(request.param)
    bounds = {"body_bytes_max": BODY_MAX, "header_bytes_max": 2048, "header_timeout_seconds": 1}
    with serving(url, **bounds, body_timeout_seconds=1, connections_max=20, event_streams_max=2) as running:
        yield running
        assert running.http.get("/healthz").status_code == 200
        assert running.ledger.portfolios() == [], "hostile input left something behind"
        samples = running.parts.metrics.requests.collect()[0].samples
        assert not [sample for sample in samples if sample.labels["status"] == "500"]


def _connect(service: Running, source: str = "127.0.0.1") -> socket.socket:
    address = urlsplit(service.url)
    return socket.create_connection((address.hostname, address.port), timeout=15, source_address=(source, 0))


def _send(service: Running, raw: bytes) -> bytes:
    with _connect(service) as connection:
        connection.sendall(raw)
        return _rest(connection)


def _rest(connection: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := connection.recv(65536):
            received += chunk
    except ConnectionResetError:
        pass
    return received


def _post(body: bytes, *headers: str, path: str = "/v1/reservations") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Idempotency-Key: k", "Connection: close", *headers]
    if not any(line.lower().startswith(("content-length", "transfer-encoding")) for line in headers):
        lines.append(f"Content-Length: {len(body)}")
    if not any(line.lower().startswith("content-type") for line in headers):
        lines.append("Content-Type: application/json")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def _status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


BODIES = {
    "not json": b"hello",
    "array": b"[]",
    "null": b"null",
    "text": b'"x"',
    "cut off": b'{"price": "1"',
    "two values": b"{}{}",
    "trailing comma": b'{"portfolio": "main",}',
    "comment": b"{/* */}",
    "utf-16": '{"portfolio": "x"}'.encode("utf-16"),
    "bom": b"\xef\xbb\xbf{}",
    "latin-1": '{"portfolio": "é"}'.encode("latin-1"),
    "overlong": b'{"portfolio": "\xc0\xaf"}',
    "nul": b'{"portfolio": "\x00"}',
    "escaped nul": b'{"portfolio": "a\\u0000"}',
    "surrogate": b'{"tags": {"venue": "\\ud800"}}',
    "duplicate": b'{"price": "1", "price": "2"}',
    "duplicate deep": b'{"tags": {"venue": "a", "venue": "b"}}',
    "nan": b'{"signal_score": NaN}',
    "infinity": b'{"signal_score": Infinity}',
    "float": b'{"signal_score": 0.5}',
    "huge exponent": b'{"signal_score": 1e999999}',
    "huge int": b'{"ttl_seconds": ' + b"9" * 3000 + b"}",
    "huge decimal": b'{"price": "' + b"9" * 3000 + b'"}',
    "31 digits": b'{"price": "' + b"9" * 31 + b'"}',
    "exponent text": b'{"price": "1e400"}',
    "arabic digits": '{"price": "٣"}'.encode(),
    "deep array": b"[" * 2000 + b"]" * 2000,
    "deep object": b'{"a":' * 500 + b"1" + b"}" * 500,
    "unbalanced": b"[" * 4000,
    "unknown field": b'{"__class__": "x"}',
    "proto": b'{"__proto__": {"portfolio": "x"}}',
    "17 tags": json.dumps({"tags": {f"t{n}": "x" for n in range(17)}}).encode(),
    "17 values": json.dumps({"tags": {"venue": [f"v{n}" for n in range(17)]}}).encode(),
    "no value": b'{"tags": {"venue": []}}',
    "list in a list": b'{"tags": {"venue": [["bybit"]]}}',
    "number in a list": b'{"tags": {"venue": ["bybit", 1]}}',
    "surrogate in a list": b'{"tags": {"venue": ["bybit", "\\ud800"]}}',
    "object as a value": b'{"tags": {"venue": {"bybit": "okx"}}}',
    "deep value": b'{"tags": {"venue": ' + b"[" * 190 + b"]" * 190 + b"}}",
    "deeper value": b'{"tags": {"venue": ' + b"[" * 1500 + b"]" * 1500 + b"}}",
    "long list": b'{"tags": {"venue": [' + b'"a",' * 900 + b'"a"]}}',
    "long tags": json.dumps({"tags": {f"t{n}": "x" * 128 for n in range(16)}}).encode(),
    "step of zero": json.dumps(
        {
            "price": "1",
            "spot_instrument": {"symbol": "x", "min_qty": "1", "max_qty": "1", "qty_step": "0"},
            "perp_instrument": {"symbol": "x", "min_qty": "1", "max_qty": "1", "qty_step": "1"},
        }
    ).encode(),
}


@pytest.mark.parametrize("name", BODIES)
def test_send_body_when_hostile_then_422_problem(service: Running, name: str) -> None:
    answer = _send(service, _post(BODIES[name]))
    assert _status(answer) == 422, answer
    assert b"application/problem+json" in answer
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (_post(b"{}", "Content-Type: text/plain"), 415),
        (_post(b"{}", "Content-Type: application/json; charset=utf-16"), 415),
        (_post(b"portfolio=x", "Content-Type: application/x-www-form-urlencoded"), 415),
        (_post(b"x" * (BODY_MAX + 1)), 413),
        (_post(b"", f"Content-Length: {10**9}") + b"x" * (BODY_MAX + 1), 413),
        (_post(b"1001\r\n" + b"x" * 4097 + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"), 413),
        (_post(b"{}", "Content-Length: -1"), 400),
        (_post(b"{}", "Content-Length: 2", "Content-Length: 3"), 400),
        (_post(b"{}", "Content-Length: 2", "Transfer-Encoding: chunked"), 400),
        (_post(b"zz\r\n", "Transfer-Encoding: chunked"), 400),
        (_post(b"{}", "Idempotency-Key: second"), 422),
        (_post(b"{}", "X-Long: " + "x" * 3000), 431),
        (_post(b"{}", *[f"X-{n}: x" for n in range(300)]), 431),
        (_post(b"{}", path="/" + "x" * 3000), 431),
        (_post(b"{}", path="/v1/positions/%00-1/release"), 422),
        (_post(b"{}", path="/v1/positions/%ff%fe-1/release"), 422),
        (_post(b"{}", path="/v1/positions/..%2f..%2fetc/release"), 404),
        (_post(b"{}", path="/v1/reservations?full=1"), 422),
        (_post(b"{}", path="/v1/reservations/"), 404),
        (_post(b"{}", path="//v1/reservations"), 404),
        (_post(b"{}", "Host: other"), 400),
        (_post(b"{}", "Host: localhost"), 400),
        (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"BREW /v1/reservations HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"TRACE /v1/positions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", 405),
    ],
    ids=range(27),
)
def test_send_request_when_malformed_or_too_large_then_it_is_refused(service: Running, raw: bytes, status: int) -> None:
    assert _status(_send(service, raw)) == status


def test_send_key_when_it_is_no_text_then_422(service: Running) -> None:
    for key in (b"\xff\xfe", b"a\x80", "a\u200b".encode()):
        raw = _post(b"{}").replace(b"Idempotency-Key: k", b"Idempotency-Key: " + key)
        assert _status(_send(service, raw)) == 422


@pytest.mark.parametrize(
    ("start", "status"),
    [
        (b"", 408),
        (b"POST /v1/reservations HT", 408),
        (b"POST /v1/reservations HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n", 408),
        (_post(b'{"price":', "Content-Length: 1000"), 408),
        (_post(b"5\r\n{", "Transfer-Encoding: chunked"), 408),
    ],
    ids=["nothing", "request line", "headers", "body", "chunked body"],
)
def test_send_slowly_when_it_takes_too_long_then_the_connection_ends(
    service: Running, start: bytes, status: int
) -> None:
    started = time.monotonic()
    answer = _send(service, start)
    assert _status(answer) == status
    assert time.monotonic() - started < 10


def test_send_head_byte_by_byte_when_a_connection_was_used_before_then_it_still_ends(service: Running) -> None:
    with _connect(service) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost:")
        assert _status(_rest(connection)) == 408


def test_connect_when_there_are_too_many_then_503_and_the_others_are_served(service: Running) -> None:
    held = [_connect(service) for _ in range(20)]
    try:
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n")
        answers = [_rest_of_one(service) for _ in range(3)]
        assert 503 in answers
        for connection in held:
            connection.sendall(b"Connection: close\r\n\r\n")
        served = [_rest(connection)[9:12] for connection in held]
        assert served.count(b"200") >= 18
    finally:
        for connection in held:
            connection.close()


@pytest.mark.parametrize("pause", [0, 0.05], ids=["at once", "later"])
@pytest.mark.parametrize("trailer", ["Idempotency-Key: k", "X-Request-Id: t", "Host: other"])
def test_send_trailers_when_body_is_chunked_then_they_are_no_headers(
    service: Running, trailer: str, pause: float
) -> None:
    head = "POST /v1/reservations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    start = f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\n["
    end = f"\r\n1\r\n]\r\n0\r\n{trailer}\r\n\r\n{head}Connection: close\r\nContent-Length: 0\r\n\r\n"
    with _connect(service) as connection:
        for part in (start, end) if pause else (start + end,):
            connection.sendall(part.encode())
            time.sleep(pause)
        answer = _rest(connection)
    assert answer.count(b"HTTP/1.1 422") == 2, answer
    assert answer.count(b"the header Idempotency-Key is missing") == 2, answer
    assert b"x-request-id: t\r\n" not in answer


def test_send_http_1_0_when_it_names_no_host_then_it_is_served(service: Running) -> None:
    assert _status(_send(service, b"GET /healthz HTTP/1.0\r\n\r\n")) == 200


def test_connect_when_one_client_has_too_many_then_it_gets_503_and_others_are_served(new_database: NewDatabase) -> None:
    with serving(new_database("sqlite"), connections_per_client_max=5, connections_max=20) as service:
        held = [_connect(service) for _ in range(5)]
        answer = _send(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert _status(answer) == 503
        assert b"connection: close" in answer
        assert b"your address" in answer
        with _connect(service, source="127.0.0.2") as other:
            other.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert _status(_rest(other)) == 200
        for connection in held:
            connection.close()
        eventually(lambda: _rest_of_one(service) == 200)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.0.0.7", "10.0.0.7"),
        ("2001:db8:1:2:aaaa::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
    ],
)
def test_count_client_when_address_has_a_form_then_by_what_one_client_has(address: str, client: str) -> None:
    assert client_of((address, 1)) == client


def _rest_of_one(service: Running) -> int:
    return _status(_send(service, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))


def test_open_event_streams_when_there_are_too_many_then_503(service: Running) -> None:
    with service.http.stream("GET", "/v1/events") as one, service.http.stream("GET", "/v1/events") as two:
        lines = [stream.iter_lines() for stream in (one, two)]
        assert all(next(each).startswith("retry") for each in lines)
        third = service.http.get("/v1/events")
    assert (third.status_code, third.json()["code"]) == (503, "busy")
    assert third.headers["Retry-After"]
