"""Generates the load of the service benchmark: keep-alive clients on raw sockets, in a process of their own.

    python -m benchmarks.load '{"port": 8321, "service": "ours", ...}'

An HTTP client library uses more CPU per request than the service under test, on the same machine. So a client here is a
socket that writes a request as bytes, finds the end of the response, checks the status, and extracts the position ids
for the release from the text. Prints the figures as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from time import perf_counter_ns
from typing import cast

import uvloop

from benchmarks.baselines import RESERVED_USD
from benchmarks.measure import BenchmarkError, Figures, Pace, Pair, Samples, Window

CONNECT_TIMEOUT_SECONDS = 30.0
STALL_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class LoadRun:
    """Parameters of one run. commands: per HTTP call, 1 for the single calls."""

    port: int
    service: str
    callers: int
    commands: int
    warmup_seconds: float
    measured_seconds: float
    token: str = ""

    @property
    def pace(self) -> Pace:
        return Pace(self.warmup_seconds, self.measured_seconds)


@dataclass(frozen=True, slots=True)
class ServiceRequests:
    """Requests of one service. reserve, release: make a request. handles: extracts position ids from a response."""

    reserve: Callable[[str], bytes]
    release: Callable[[str, list[str]], bytes]
    handles: Callable[[bytes], list[str]]


def _request(path: str, body: str, token: str, key: str | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    if key is not None:
        lines.append(f"Idempotency-Key: {key}")
    lines.append(f"Content-Length: {len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


_RESERVE_FIELDS = '"tags":{"venue":"bybit","symbol":"BTC","strategy":"funding"},"signal_score":"0.5","ttl_seconds":60'
_POSITION = re.compile(rb'"position_id":"([^"]+)"')
_ID = re.compile(rb'"id":(\d+)')


def _texts(pattern: re.Pattern[bytes]) -> Callable[[bytes], list[str]]:
    return lambda answer: [found.decode() for found in pattern.findall(answer)]


def _ours(load_run: LoadRun) -> ServiceRequests:
    """Requests of ledger-sizer's single calls."""
    return ServiceRequests(
        lambda key: _request("/v1/reservations", f"{{{_RESERVE_FIELDS}}}", load_run.token, key),
        lambda key, held: _request(f"/v1/positions/{held[0]}/release", "{}", load_run.token, key),
        _texts(_POSITION),
    )


def _ours_batch(load_run: LoadRun) -> ServiceRequests:
    """Requests of ledger-sizer's batch call: `commands` reserves, then their releases."""

    def reserve(key: str) -> bytes:
        items = (f'{{"command":"reserve","key":"{key}/{n}",{_RESERVE_FIELDS}}}' for n in range(load_run.commands))
        return _request("/v1/batch", f'{{"commands":[{",".join(items)}]}}', load_run.token)

    def release(key: str, held: list[str]) -> bytes:
        items = (f'{{"command":"release","key":"{key}/{n}","position_id":"{name}"}}' for n, name in enumerate(held))
        return _request("/v1/batch", f'{{"commands":[{",".join(items)}]}}', load_run.token)

    return ServiceRequests(reserve, release, _texts(_POSITION))


def _by_hand(load_run: LoadRun) -> ServiceRequests:
    """Requests of the hand-written service."""
    return ServiceRequests(
        lambda key: _request("/reservations", f'{{"key":"{key}","notional_usd":"{RESERVED_USD}"}}', load_run.token),
        lambda _key, held: _request(f"/reservations/{held[0]}/release", "", load_run.token),
        _texts(_ID),
    )


def requests_of(load_run: LoadRun) -> ServiceRequests:
    """Return the requests of the service that `load_run` names."""
    if load_run.service == "hand":
        return _by_hand(load_run)
    return _ours(load_run) if load_run.commands == 1 else _ours_batch(load_run)


class Client(asyncio.Protocol):
    """One keep-alive connection: reserves, releases, and repeats until the window closes."""

    def __init__(self, number: int, load_run: LoadRun, requests: ServiceRequests, window: Window) -> None:
        self.done: asyncio.Future[list[Pair]] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._commands = load_run.commands
        self._window = window
        self._keys: Iterator[str] = (f"{number}/{turn}" for turn in count())
        self._key = ""
        self._held: list[str] | None = None
        self._buffer = b""
        self._pairs: list[Pair] = []
        self._begun_ns = self._reserved_ns = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's transport does not inherit from it

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the service closed the connection: {exc}")

    def start(self) -> None:
        """Send the next reserve, or finish."""
        self._begun_ns = perf_counter_ns()
        if self._begun_ns >= self._window.end_ns:
            if not self.done.done():
                self.done.set_result(self._pairs)
            self._transport.close()
            return
        self._key = next(self._keys)
        self._transport.write(self._requests.reserve(self._key))

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        head = self._buffer.find(b"\r\n\r\n")
        if head < 0:
            return
        size = _content_length(self._buffer[:head])
        if len(self._buffer) < head + 4 + size:
            return
        answer, self._buffer = self._buffer, b""
        if answer[9:10] != b"2" or b'"problem"' in answer:
            self._fail(f"a call that fits was refused: {answer[:600].decode(errors='replace')}")
            return
        self._on_response(answer)

    def _on_response(self, answer: bytes) -> None:
        now_ns = perf_counter_ns()
        if self._held is None:
            self._reserved_ns = now_ns
            self._held = self._requests.handles(answer)
            if len(self._held) != self._commands:
                self._fail(f"{self._commands} reserves made {len(self._held)} positions: {answer[:600]!r}")
                return
            self._transport.write(self._requests.release(f"{self._key}/exit", self._held))
            return
        self._held = None
        if now_ns >= self._window.start_ns:
            self._pairs.append(Pair(self._begun_ns, self._reserved_ns, now_ns))
        self.start()

    def _fail(self, what: str) -> None:
        if not self.done.done():
            self.done.set_exception(BenchmarkError(what))
        self._transport.close()


def _content_length(head: bytes) -> int:
    at = head.lower().find(b"\r\ncontent-length:")
    if at < 0:
        raise BenchmarkError(f"an answer without its length: {head!r}")
    return int(head[at + 17 :].split(b"\r\n", 1)[0])


async def run(load_run: LoadRun) -> Figures:
    """Connect all clients, open the window, and wait for the last response."""
    loop = asyncio.get_running_loop()
    requests, window = requests_of(load_run), Window(load_run.pace)
    clients: list[Client] = []
    async with asyncio.timeout(CONNECT_TIMEOUT_SECONDS):
        for number in range(load_run.callers):
            client = Client(number, load_run, requests, window)
            await loop.create_connection(lambda client=client: client, "127.0.0.1", load_run.port)  # type: ignore[misc]
            clients.append(client)
    window.open()
    for client in clients:
        client.start()
    async with asyncio.timeout(load_run.warmup_seconds + load_run.measured_seconds + STALL_SECONDS):
        pairs = await asyncio.gather(*(client.done for client in clients))
    return Samples(window, [pair for own in pairs for pair in own]).figures()


def main() -> None:
    """Run the `LoadRun` given as JSON. Prints one line of JSON, or an error with status 1."""
    load_run = LoadRun(**json.loads(sys.argv[1]))
    try:
        figures = uvloop.run(run(load_run))
    except (BenchmarkError, OSError, TimeoutError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
    print(json.dumps(asdict(figures)))


if __name__ == "__main__":
    main()
