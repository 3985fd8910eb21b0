"""Resuming event streams of many portfolios: the id is short, any replica resumes it, and nothing is lost."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from ledger_sizer import Ledger, Reserve
from ledger_sizer.api.event_cursor import ALL, EventCursor, ShortId, parse_event_id
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.service.api_keys import create_key
from ledger_sizer.storage.database import make_engine
from tests.support.clock import FakeClock
from tests.support.services import Running, serving

NAMES = [f"bot-{number:04}-mean-reversion" for number in range(400)]
Sent = list[tuple[str, int]]


@pytest.fixture
def ledger(database_url: str, clock: FakeClock) -> Iterator[Ledger]:
    """A ledger with many portfolios of one decision each."""
    with Ledger.open(database_url, clock=clock) as opened:
        opened.submit([Reserve(key="first", portfolio=name) for name in NAMES])
        yield opened


def _listen(service: Running, count: int, last: str | None = None, **headers: str) -> tuple[Sent, str]:
    """Return the next `count` decisions of a stream as (portfolio, seq), and the id after them."""
    sent: Sent = []
    last_id = ""
    if last is not None:
        headers["Last-Event-ID"] = last
    with service.http.stream("GET", "/v1/events", headers=headers) as stream:
        assert stream.status_code == 200, stream.read()
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "id":
                last_id = value
            elif name == "data":
                event = json.loads(value)
                sent.append((event["portfolio"], event["seq"]))
            if not line and len(sent) == count:
                break
    return sent, last_id


def test_resume_when_there_are_many_portfolios_then_any_replica_goes_on_from_a_short_id(
    database_url: str, ledger: Ledger, clock: FakeClock
) -> None:
    wanted: Sent = []
    with serving(database_url) as one, serving(database_url) as other:
        _, last = _listen(one, 0)
        assert len(last) < 1024, "the head may have 32 KiB, and a proxy's less"
        for number in range(3):
            clock.advance(1)
            names = NAMES[number::2]
            ledger.submit([Reserve(key=f"{number} {n}", portfolio=name) for name in names for n in range(2)])
            for name in names:
                seq = ledger.exposure(name).seq or 0
                wanted += [(name, seq - 1), (name, seq)]
        got: Sent = []
        for count, service in ((1, other), (7, one), (150, other), (333, one), (len(wanted) - 491, other)):
            found, last = _listen(service, count, last)
            got += found
            assert len(last) < 1024
        assert sorted(got) == sorted(wanted), "each once"
        ledger.reserve(key="end", portfolio=NAMES[3])
        assert _listen(one, 1, last)[0] == [(NAMES[3], ledger.exposure(NAMES[3]).seq)]


def test_resume_when_decisions_were_committed_late_then_none_is_lost(
    database_url: str, ledger: Ledger, clock: FakeClock
) -> None:
    """A second writer's clock is behind: its decisions lie before the time up to which everything was sent."""
    late_clock = FakeClock(clock() + timedelta(seconds=1))
    with serving(database_url) as service, Ledger.open(database_url, clock=late_clock) as late:
        _, start = _listen(service, 0)
        clock.advance(30)
        ledger.reserve(key="now", portfolio=NAMES[9])
        sent, last = _listen(service, 1, start)
        assert sent == [(NAMES[9], 2)]
        for key in ("late", "later"):
            late.reserve(key=key, portfolio=NAMES[7])
        ledger.reserve(key="end", portfolio="zzz")
        wanted = {(NAMES[7], 2), (NAMES[7], 3), ("zzz", 1)}
        again: Sent = []
        with service.http.stream("GET", "/v1/events", headers={"Last-Event-ID": last}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: "):
                    event = json.loads(line[6:])
                    again.append((event["portfolio"], event["seq"]))
                if wanted <= set(again):
                    break
        assert len(again) - len(wanted) <= 30, "only the portfolios of one group of 64 are sent again"


def test_resume_when_id_lists_many_portfolios_then_it_still_works(database_url: str, ledger: Ledger) -> None:
    listed = ",".join(f"{name}:1" for name in NAMES)
    with serving(database_url) as service:
        ledger.reserve(key="new", portfolio=NAMES[5])
        assert _listen(service, 1, listed)[0] == [(NAMES[5], 2)]


def test_resume_when_key_sees_less_or_other_portfolios_then_only_its_own_or_422(
    database_url: str, ledger: Ledger, clock: FakeClock
) -> None:
    engine = make_engine(database_url)
    headers = {
        name: {"Authorization": f"Bearer {create_key(engine, name, 'read', bound).token}"}
        for name, bound in (("all", []), ("one", NAMES[5:6]), ("many", NAMES[:200]), ("others", NAMES[1:201]))
    }
    engine.dispose()
    with serving(database_url) as service:
        _, of_all = _listen(service, 0, **headers["all"])
        _, of_many = _listen(service, 0, **headers["many"])
        clock.advance(1)
        ledger.submit([Reserve(key="new", portfolio=name) for name in NAMES])
        assert _listen(service, 1, of_all, **headers["one"])[0] == [(NAMES[5], 2)]
        assert sorted(_listen(service, 200, of_many, **headers["many"])[0]) == [(name, 2) for name in NAMES[:200]]
        for name in ("others", "all"):
            refused: httpx.Response = service.http.get(
                "/v1/events", headers={"Last-Event-ID": of_many, **headers[name]}
            )
            assert (refused.status_code, refused.json()["field"]) == (422, "Last-Event-ID")


def test_resume_when_an_id_names_a_portfolio_of_others_then_it_is_forbidden_and_nothing_is_told_of_it(
    database_url: str, ledger: Ledger
) -> None:
    engine = make_engine(database_url)
    headers = {"Authorization": f"Bearer {create_key(engine, 'one', 'read', NAMES[5:6]).token}"}
    engine.dispose()
    sums = ".".join("0" * 64)
    with serving(database_url) as service:
        for name in (NAMES[6], "nobody"):
            for last in (f"{name}:1", f"{NAMES[5]}:1,{name}:99"):
                refused = service.http.get("/v1/events", headers={"Last-Event-ID": last, **headers})
                assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
                assert refused.json()["detail"].endswith(f"is not for portfolio {name!r}")
            # The short id names it only as the place in a round: the others' part is left out.
            assert _listen(service, 1, f"~all~1~2~{name}~99~{sums}", **headers)[0] == [(NAMES[5], 1)]


class Model:
    """A ledger in memory: by portfolio the times of its decisions, which never fall, and how many are committed."""

    def __init__(self, names: list[str]) -> None:
        self.times: dict[str, list[int]] = {name: [] for name in names}

    def decide(self, name: str, at: int) -> None:
        times = self.times[name]
        times.append(max(at, times[-1] if times else 0))

    def until(self, us: int) -> dict[str, int]:
        return {name: sum(at <= us for at in times) for name, times in self.times.items()}


@pytest.mark.parametrize("late_percent", [0, 20])
@pytest.mark.parametrize("seed", range(15))
def test_resume_when_any_commands_ran_then_nothing_is_lost_and_without_late_ones_nothing_doubled(
    seed: int, late_percent: int
) -> None:
    chance = random.Random(seed)
    names = [f"portfolio-{number}-{'x' * 30}" for number in range(60)]
    model, now = Model(names), 1
    for name in names:
        model.decide(name, now)
    cursor = EventCursor(ALL, model.until(now), now)
    sent: defaultdict[str, int] = defaultdict(int, model.until(now))
    doubled = 0
    for _ in range(30):
        now += 10
        for _ in range(chance.randrange(40)):
            late = chance.randrange(100) < late_percent
            model.decide(chance.choice(names), now - (chance.randrange(40) if late else chance.randrange(9)))
        left = chance.randrange(60)
        cursor.marks = cursor.marks or {name: len(times) for name, times in model.times.items()}
        for name in sorted(names):
            while left and name >= cursor.at and cursor.sent(name) < cursor.marks[name]:
                left -= 1
                seq = cursor.sent(name) + 1
                doubled += seq <= sent[name]
                assert seq <= sent[name] + 1, f"{name} {sent[name] + 1} is lost"
                sent[name] = max(sent[name], seq)
                cursor.advance(name, seq, model.times[name][seq - 1])
        if left:
            cursor.end_round()
        parsed: Any = parse_event_id(cursor.event_id)
        assert isinstance(parsed, ShortId)
        seqs = parsed.positions(model.until(parsed.done_us), model.until(parsed.round_us))
        assert all(seq <= sent[name] for name, seq in seqs.items()), "something would be lost"
        if chance.randrange(2):
            cursor = EventCursor(ALL, seqs, parsed.done_us)
            if parsed.at:
                cursor.resume_round(parsed.round_us, parsed.at, model.until(parsed.round_us))
    assert doubled == 0 or late_percent


def test_resume_when_ledger_has_fewer_decisions_than_were_sent_then_it_is_refused() -> None:
    names = [f"portfolio-{number}-{'x' * 30}" for number in range(60)]
    parsed = parse_event_id(EventCursor(ALL, dict.fromkeys(names, 5), 100).event_id)
    assert isinstance(parsed, ShortId)
    with pytest.raises(InvalidRequest, match="more decisions than this one has"):
        parsed.positions(dict.fromkeys(names, 4), dict.fromkeys(names, 4))
