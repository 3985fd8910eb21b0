"""What a round stands on: a folder, a seed, real processes that end with it, clients, and the times of its faults."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign.auditor import audit
from campaign.clients import Clients
from campaign.postgresql import PostgreSQL
from campaign.processes import free_port
from campaign.proxy import Proxy
from campaign.services import Service
from campaign.templates import CAPS, Templates

RECOVERY_SECONDS_MAX = 60.0


class Skipped(Exception):
    """The round cannot run here. The message says which part is missing."""


@dataclass
class Outcome:
    """What a round showed. recoveries: seconds from the end of each fault to the next granted answer."""

    name: str
    seconds: float = 0.0
    acknowledged: int = 0
    answers: int = 0
    faults: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)
    slowest: float = 0.0
    errors: dict[str, int] = field(default_factory=dict)
    skipped: str | None = None

    @property
    def is_clean(self) -> bool:
        """True if nothing was lost, doubled or otherwise wrong."""
        return not (self.lost or self.doubled or self.problems)


@dataclass
class Fault:
    """One fault. over_at: moment of the monotonic clock."""

    over_at: float | None = None

    def over(self, at: float | None = None) -> None:
        """Say that the fault has ended, now or at the given moment: recovery is counted from here."""
        self.over_at = at or time.monotonic()


@dataclass
class Stage:
    """One run of one round. short: of a few seconds, as in CI. say: reports progress."""

    folder: Path
    seed: int
    short: bool
    programs: Path
    templates: Templates
    say: Callable[[str], None]
    outcome: Outcome
    groups: list[Clients] = field(default_factory=list)
    ends: ExitStack = field(default_factory=ExitStack)
    _services: int = 0
    _servers: int = 0

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)

    # What a round is built of

    def sqlite(self, folder: Path | None = None) -> str:
        """Return the URL of a new SQLite ledger, in the round's folder or in another one."""
        return self.templates.copy_sqlite((folder or self.folder) / "ledger.db")

    def postgresql(
        self, env: Mapping[str, str] | None = None, *, folder: Path | None = None, **settings: Any
    ) -> PostgreSQL:
        """Start a PostgreSQL server with a ledger; it ends with the round.

        env: further environment variables. settings: of `postgresql.conf`. folder: None for one in the round's.
        """
        server = self.server(folder=folder, **settings)
        server.env = dict(env or {})
        return self.templates.copy_postgresql(server).start()

    def server(self, *, folder: Path | None = None, port: int | None = None, **settings: object) -> PostgreSQL:
        """Return a server that is not made yet; it ends with the round. port: None for a free one."""
        self._servers += 1
        server = PostgreSQL(folder or self.folder / f"pg{self._servers}", self.programs, settings, port or free_port())
        self.ends.callback(server.end)
        return server

    def service(self, url: str, **more: object) -> Service:
        """Start a service that ends with the round. more: environment variables."""
        self._services += 1
        service = Service(
            url, self.folder, f"service{self._services}", {name: str(value) for name, value in more.items()}
        )
        self.ends.callback(service.kill)
        return service.start()

    def proxy(self, target: int) -> Proxy:
        """Start a proxy before this port; it ends with the round."""
        proxy = Proxy(target).start()
        self.ends.callback(proxy.close)
        return proxy

    def trade(self, *ports: int, **more: Any) -> Clients:
        """Start the clients, and let them trade for a moment before the first fault. more: fields of `Clients`."""
        self.group(*ports, **more)
        self.wait_for_grant(time.monotonic(), "the start")
        self.rest(2)
        return self.clients

    def group(self, *ports: int, **more: Any) -> Clients:
        """Start one more group of clients, under a `tag` of its own."""
        clients = Clients(ports, self.seed, self.folder / "answers.jsonl", **more)
        self.groups.append(clients)
        self.ends.callback(clients.stop)
        return clients.start()

    @property
    def clients(self) -> Clients:
        """The first group of clients, by whose grants recovery is measured."""
        assert self.groups, "trade first"
        return self.groups[0]

    # Its course

    def rest(self, seconds: float) -> None:
        """Let the clients trade on: `seconds`, half of them in a short campaign, a little more or less by chance."""
        time.sleep(seconds * (0.5 if self.short else 1.0) * self.chance.uniform(0.8, 1.2))

    def times(self, short: int, long: int) -> Iterator[int]:
        """Count the repetitions of a fault."""
        return iter(range(short if self.short else long))

    @contextmanager
    def fault(self, what: str, *, within: float = RECOVERY_SECONDS_MAX) -> Iterator[Fault]:
        """Inject a fault during a `with` block; then wait for the next grant, and keep how long that took.

        The fault ends with the block, or before where the block calls `Fault.over`: what follows is then recovery.
        """
        self.say(what)
        fault = Fault()
        yield fault
        self.outcome.faults += 1
        self.wait_for_grant(fault.over_at or time.monotonic(), what, within=within, counted=True)

    def wait_for_grant(
        self, since: float, what: str, *, within: float = RECOVERY_SECONDS_MAX, counted: bool = False
    ) -> None:
        """Wait for a new grant whose request was sent after `since`. None within `within` seconds is a problem."""
        while (heard := self.clients.first_grant_after(since)) is None:
            if time.monotonic() - since > within:
                self.problem(f"no grant within {within:g} s after: {what}")
                return
            time.sleep(0.01)
        if counted:
            self.outcome.recoveries.append(heard - since)

    def problem(self, what: str) -> None:
        """Record that a promise was broken."""
        self.say(f"PROBLEM: {what}")
        self.outcome.problems.append(what)

    def check(self, url: str) -> None:
        """Stop the clients, and audit the ledger. Every round ends with it."""
        for clients in self.groups:
            clients.stop()
        answers = [told for clients in self.groups for told in clients.answers]
        found = audit(url, answers, CAPS, folder=self.folder)
        outcome = self.outcome
        outcome.acknowledged += found.acknowledged
        outcome.answers += len(answers)
        outcome.lost += found.lost
        outcome.doubled += found.doubled
        outcome.problems += found.problems
        for clients in self.groups:
            outcome.problems += [*clients.wrong, *[f"never answered: {what}" for what in clients.unanswered]]
            outcome.slowest = max(outcome.slowest, clients.slowest)
            outcome.errors = dict(Counter(outcome.errors) + clients.errors)
