"""Bots on raw HTTP connections that send each key until it is answered, and keep every answer.

They are no product code: nothing of the client library, so that a defect there hides nothing here.
"""

from __future__ import annotations

import http.client
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

ANSWER_SECONDS_MAX = 45.0
"""Longest wait for one answer: above every bound that the service states (30 s for an answer)."""
LAST_ANSWERS_SECONDS_MAX = 90.0
UNKNOWN_CODES = frozenset({"not_found", "internal_error", "key_reused", "idempotency_key_reused", "invalid_request"})
"""Answers to a correct request that are never right: the position, or the key's first request, was forgotten."""


class Told(NamedTuple):
    """One decision as a client was told it.

    life: seconds from the decision to the promised end of its hold. begun: when the key was first sent. sent, heard: of
    the attempt that was answered. All three are seconds of the monotonic clock.
    """

    portfolio: str
    key: str
    seq: int
    hash: str
    outcome: str
    granted: bool
    replayed: bool
    position_id: str | None
    life: float | None
    begun: float
    sent: float
    heard: float


class Connection:
    """One kept-alive connection that never retries by itself."""

    def __init__(self, port: int, *, seconds_max: float = ANSWER_SECONDS_MAX) -> None:
        self._port = port
        self._seconds_max = seconds_max
        self._http: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, body: Any = None, *, key: str | None = None) -> tuple[int, Any]:
        """Send one request, and return status and JSON of its answer. Raises `OSError` or `HTTPException`."""
        if self._http is None:
            self._http = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._seconds_max)
        headers = {} if body is None else {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        try:
            self._http.request(method, path, None if body is None else json.dumps(body), headers)
            answer = self._http.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            self.close()
            raise
        if answer.will_close:
            self.close()
        try:
            return answer.status, json.loads(data or b"null")
        except ValueError as error:
            self.close()
            raise http.client.HTTPException(f"answer {answer.status} is no JSON: {data[:80]!r}") from error

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._http is not None:
            self._http.close()
            self._http = None


def decision_of(status: int, form: Any) -> dict[str, Any] | None:
    """Return the recorded decision that an answer tells, None where it tells none."""
    if not isinstance(form, dict):
        return None
    found = form.get("decision") if status == 409 else form if status in (200, 201) else None
    return found if isinstance(found, dict) and found.get("hash") else None


@dataclass
class Clients:
    """Threads that trade at random at the services on `ports`. Each asks one key at a time until it is answered.

    answers: every decision that was told. errors: how often which error was met. wrong: answers that are never right.
    file: gets a JSON line for each answer. tag: begins every key, so that the clients of one ledger differ.
    ttls: lives of the holds, seconds; one in a hundred lives 600.
    """

    ports: Sequence[int]
    seed: int
    file: Path
    threads: int = 6
    portfolios: Sequence[str] = ("main", "alt")
    tag: str = "bot"
    seconds_max: float = ANSWER_SECONDS_MAX
    ttls: Sequence[int] = (1, 2, 4)
    answers: list[Told] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    slowest: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _running: threading.Event = field(default_factory=threading.Event)
    _busy: int = 0
    _threads: list[threading.Thread] = field(default_factory=list)
    _log: TextIO | None = None

    def start(self) -> Clients:
        """Start trading."""
        self._log = self.file.open("a", encoding="utf-8")
        self._running.set()
        self._threads = [threading.Thread(target=self._trade, args=(n,), daemon=True) for n in range(self.threads)]
        for thread in self._threads:
            thread.start()
        return self

    def pause(self) -> None:
        """Begin no further key, and wait until every begun one is answered."""
        self._running.clear()
        deadline = time.monotonic() + LAST_ANSWERS_SECONDS_MAX
        while self._busy and time.monotonic() < deadline:
            time.sleep(0.01)

    def resume(self) -> None:
        """Trade again after `pause`."""
        self._running.set()

    def stop(self) -> None:
        """Begin no further key, and wait for the answers to those that were begun. Idempotent."""
        self._stop.set()
        self._running.set()
        for thread in self._threads:
            thread.join(LAST_ANSWERS_SECONDS_MAX + self.seconds_max)
        if self._log is not None:
            self._log.close()
            self._log = None

    def first_grant_after(self, moment: float) -> float | None:
        """Return when a new grant was heard whose request was sent after `moment`; None where there was none yet."""
        first = None
        with self._lock:
            for told in reversed(self.answers):
                if told.heard < moment:
                    break
                if told.sent >= moment and _is_new(told):
                    first = told.heard
        return first

    def add(self, told: Told) -> None:
        """Keep one answer, also of a call that was made by hand."""
        with self._lock:
            self.answers.append(told)
            if self._log is not None:
                self._log.write(json.dumps(told._asdict()) + "\n")

    def _trade(self, number: int) -> None:
        chance = random.Random(self.seed * 1009 + number)
        connections = [Connection(port, seconds_max=self.seconds_max) for port in self.ports]
        count = 0
        while not self._stop.is_set():
            if not self._running.is_set():
                self._running.wait(0.1)
                continue
            count += 1
            with self._lock:
                self._busy += 1
            try:
                self._one_position(chance, connections, f"{self.tag}{number}-{count}")
            finally:
                with self._lock:
                    self._busy -= 1
        for connection in connections:
            connection.close()

    def _one_position(self, chance: random.Random, connections: list[Connection], key: str) -> None:
        ask = _Asking(self, chance, connections)
        long = chance.random() < 0.01
        body: dict[str, Any] = {
            "portfolio": chance.choice(self.portfolios),
            "tags": {"symbol": f"S{chance.randrange(5)}", "venue": chance.choice(["bybit", "okx", ["bybit", "okx"]])},
            "ttl_seconds": 600 if long else chance.choice(self.ttls),
            "available_balance": "1" if long else str(chance.randrange(10, 60)),
            "price": "100",
        }
        held = ask("POST", "/v1/reservations", body, key)
        if held is None or not held.granted or long:
            return
        path, fate = f"/v1/positions/{held.position_id}", chance.random()
        if fate < 0.5:
            filled = {"quantity": "0.1", "price": str(100 + chance.randrange(20))}
            if ask("POST", f"{path}/confirm", filled, f"{key}/c") is not None:
                ask("POST", f"{path}/release", {}, f"{key}/x")
        elif fate < 0.8:
            ask("POST", f"{path}/release", {}, f"{key}/x")
        elif fate < 0.9:
            ask("POST", f"{path}/extend", {"ttl_seconds": chance.choice(self.ttls)}, f"{key}/e")

    def count_error(self, name: str) -> None:
        """Count an answer that is no decision, or a failed attempt."""
        with self._lock:
            self.errors[name] += 1

    def forget_waits(self) -> None:
        """Count the longest wait from here on."""
        with self._lock:
            self.slowest = 0.0

    def count_wait(self, seconds: float) -> None:
        """Keep the longest wait for the end of one attempt, whatever that end was."""
        with self._lock:
            self.slowest = max(self.slowest, seconds)

    def should_give_up(self, begun: float) -> bool:
        """Return True when clients have stopped and the key that was begun then was asked long enough."""
        return self._stop.is_set() and time.monotonic() - begun > LAST_ANSWERS_SECONDS_MAX


def _is_new(told: Told) -> bool:
    """Return True for a new reservation: an extension is granted too, but takes no capital."""
    return told.granted and not told.replayed and told.position_id == f"{told.portfolio}-{told.seq}"


@dataclass
class _Asking:
    """Asks one key until it is answered, at any of the services."""

    clients: Clients
    chance: random.Random
    connections: list[Connection]

    def __call__(self, method: str, path: str, body: Any, key: str) -> Told | None:
        begun = time.monotonic()
        while True:
            sent = time.monotonic()
            try:
                status, form = self.chance.choice(self.connections).call(method, path, body, key=key)
            except (OSError, http.client.HTTPException) as error:
                self.clients.count_wait(time.monotonic() - sent)
                self.clients.count_error(type(error).__name__)
            else:
                self.clients.count_wait(time.monotonic() - sent)
                decision = decision_of(status, form)
                if decision is not None:
                    told = told_of(decision, begun, sent)
                    self.clients.add(told)
                    return told
                code = str(form.get("code") if isinstance(form, dict) else form)[:60]
                self.clients.count_error(f"{status} {code}")
                if status >= 500 and status != 503:
                    self.clients.wrong.append(f"{method} {path} of key {key}: {status} {str(form)[:200]}")
                elif status < 500 and status not in (408, 429):
                    if code in UNKNOWN_CODES:
                        self.clients.wrong.append(f"{method} {path} of key {key}: {status} {str(form)[:200]}")
                    return None
            if self.clients.should_give_up(begun):
                self.clients.unanswered.append(f"{method} {path} of key {key}")
                return None
            time.sleep(0.02 + 0.05 * self.chance.random())


def told_of(decision: dict[str, Any], begun: float, sent: float) -> Told:
    """Convert the JSON of a decision that was heard just now."""
    return Told(
        decision["portfolio"],
        decision["key"],
        decision["seq"],
        decision["hash"],
        decision["outcome"],
        decision["granted"],
        decision["replayed"],
        decision["position_id"],
        _life(decision),
        begun,
        sent,
        time.monotonic(),
    )


def _life(decision: dict[str, Any]) -> float | None:
    if decision["outcome"] == "denied" or decision["expires_at"] is None:
        return None
    ends, decided = (datetime.fromisoformat(decision[name]) for name in ("expires_at", "decided_at"))
    return (ends - decided).total_seconds()
