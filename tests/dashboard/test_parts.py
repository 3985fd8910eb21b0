"""Tests of the parts of the dashboard and of `top`: the overview and its pages, the chart, formatting, labels."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Ledger, NotFound, Reserve
from ledger_sizer.dashboard import formatting
from ledger_sizer.dashboard.chart import HEIGHT, WIDTH, chart
from ledger_sizer.dashboard.labels import decision_label
from ledger_sizer.model.choices import DriftKind, DriftState
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.domain import ScopeExposure
from ledger_sizer.model.overview import Detail, Overview, OverviewQuery
from ledger_sizer.views import exposure_series
from ledger_sizer.views.exposure_series import POINTS_MAX
from tests.dashboard.one_of_each import one_of_each
from tests.support.clock import START, FakeClock
from tests.support.ledgers import DRIFT, opened


def detail_of(overview: Overview) -> Detail:
    assert overview.detail is not None
    return overview.detail


# The overview.


def test_look_when_an_orders_fate_is_not_known_then_its_hold_comes_last_and_shows_no_time(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="1", until_known=True)
        ledger.reserve(key="2", ttl_seconds=60)
        first = detail_of(ledger.overview(OverviewQuery("main", rows=1))).held
        assert [formatting.time_left(position, clock.now()) for position in first] == ["1 min 00 s"]
        second = detail_of(ledger.overview(OverviewQuery("main", held_cursor=first.cursor))).held
        assert [formatting.time_left(position, clock.now()) for position in second] == ["until known"]


def test_look_when_lists_are_long_then_pages_continue_and_counts_are_of_all(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.set_cap(key="cap", portfolio="main", cap=Decimal(10**6))
        for number in range(7):
            ledger.adopt(key=f"a{number}", quantity=Decimal(1), price=Decimal(10))
            ledger.reserve(key=f"r{number}", ttl_seconds=Decimal(60 - number))
            ledger.set_cap(key=f"p{number}", portfolio=f"p{number}", cap=Decimal(1))
        first = ledger.overview(OverviewQuery("main", rows=3))
        detail = detail_of(first)
        assert (detail.open_count, detail.held_count, detail.seq) == (7, 7, 15)
        assert [position.number for position in detail.open] == [14, 12, 10]
        assert [position.number for position in detail.held] == [15, 13, 11], "the soonest to end first"
        assert [decision.seq for decision in detail.decisions] == [15, 14, 13]
        assert [line.name for line in first.portfolios] == ["main", "p0", "p1"]
        cursors = {
            "open_cursor": detail.open.cursor,
            "held_cursor": detail.held.cursor,
            "decisions_cursor": detail.decisions.cursor,
            "portfolios_cursor": first.portfolios.cursor,
        }
        second = ledger.overview(OverviewQuery("main", rows=100, **cursors))
        rest = detail_of(second)
        assert [position.number for position in rest.open] == [8, 6, 4, 2]
        assert [position.number for position in rest.held] == [9, 7, 5, 3]
        assert [decision.seq for decision in rest.decisions] == list(range(12, 0, -1))
        assert [line.name for line in second.portfolios] == ["p2", "p3", "p4", "p5", "p6"]
        assert (rest.open.cursor, rest.held.cursor, rest.decisions.cursor, second.portfolios.cursor) == (None,) * 4


def test_look_when_only_some_portfolios_may_be_seen_then_others_are_not_there(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        for name in ("alpha", "main", "zeta"):
            ledger.reserve(key="k", portfolio=name)
        seen = ledger.overview(OverviewQuery(only=("main", "zeta", "nobody")))
        assert [line.name for line in seen.portfolios] == ["main", "zeta"]
        assert detail_of(seen).name == "main"
        with pytest.raises(NotFound):
            ledger.overview(OverviewQuery("alpha", only=("main",)))
        assert ledger.overview(OverviewQuery(only=("nobody",))).detail is None


@pytest.mark.parametrize(
    ("look", "field"),
    [
        (OverviewQuery(rows=0), "rows"),
        (OverviewQuery(rows=201), "rows"),
        (OverviewQuery(hours=0), "hours"),
        (OverviewQuery("main", open_cursor="x"), "open_cursor"),
        (OverviewQuery("main", held_cursor="1"), "held_cursor"),
        (OverviewQuery("main", decisions_cursor="1:2"), "decisions_cursor"),
    ],
)
def test_look_when_it_asks_for_what_cannot_be_then_it_is_refused_by_name(
    database_url: str, clock: FakeClock, look: OverviewQuery, field: str
) -> None:
    with opened(database_url, clock) as ledger:
        ledger.reserve(key="k")
        with pytest.raises(InvalidRequest) as raised:
            ledger.overview(look)
        assert raised.value.field == field


def test_draw_line_when_hours_pass_then_it_begins_with_what_held_before(database_url: str, clock: FakeClock) -> None:
    with opened(database_url, clock) as ledger:
        for number in range(1, 6):
            ledger.adopt(key=f"a{number}", quantity=Decimal(1), price=Decimal(number))
            clock.advance(3600)
        line = detail_of(ledger.overview(OverviewQuery(hours=2))).line
        assert line.since == START + timedelta(hours=3)
        assert [point.seq for point in line.points] == [3, 4, 5], "the third was made before, and held at the beginning"
        assert [point.exposure for point in line.points] == [Decimal(6), Decimal(10), Decimal(15)]
        assert {point.cap for point in line.points} == {Decimal(5000)}
        assert [point.seq for point in detail_of(ledger.overview(OverviewQuery(hours=100))).line.points] == [
            1,
            2,
            3,
            4,
            5,
        ]


def make_spikes(ledger: Ledger, number: int, clock: FakeClock) -> None:
    """Make `number` decisions or more: denials, and in every 97 one spike: a position that the next one releases."""
    ledger.set_cap(key="cap", cap=Decimal(10**6))
    for start in range(0, number, 97):
        ledger.submit([Reserve(key=f"k{start}/{n}", min_notional_usd=Decimal(10**9)) for n in range(95)])
        spike = ledger.adopt(key=f"s{start}", quantity=Decimal(1), price=Decimal(1000 + start))
        ledger.release(key=f"e{start}", position_id=spike.position_id or "")
        clock.advance(1)


def test_draw_line_when_there_are_many_decisions_then_no_spike_between_two_points_is_lost(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        make_spikes(ledger, 1100, clock)
        for _ in range(2):
            newest = ledger.history(limit=1000)
            decisions = [*newest, *ledger.history(limit=1000, cursor=newest.cursor)][::-1]
            exposure = {decision.seq: decision.exposure_after for decision in decisions}
            for hours in (1, 24):
                line = detail_of(ledger.overview(OverviewQuery(hours=hours))).line
                assert line.exact_from is None
                assert POINTS_MAX // 2 < len(line.points) <= POINTS_MAX + 1
                assert (line.points[0].seq, line.points[-1].seq) == (1, decisions[-1].seq)
                before = 0
                for point in line.points:
                    between = [exposure[seq] for seq in range(before + 1, point.seq + 1)]
                    assert (point.exposure, point.low, point.high) == (between[-1], min(between), max(between))
                    before = point.seq
            drawn = chart(detail_of(ledger.overview()), clock())
            assert "highest 2,067.00" in drawn.description
            ledger.adopt(key="more", quantity=Decimal(1), price=Decimal(7))  # the cached points are still right


def test_draw_line_when_more_was_decided_than_one_look_reads_then_it_says_so_and_the_next_looks_read_it(
    database_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exposure_series, "READ_MAX", 400)
    with opened(database_url, clock) as ledger:
        make_spikes(ledger, 1100, clock)
        first = detail_of(ledger.overview())
        assert first.line.exact_from is not None
        assert "highest 2,067.00" in chart(first, clock()).description, "the newest part is read first"
        drawn = [detail_of(ledger.overview()).line.exact_from for _ in range(4)]
        assert drawn[-1] is None
        whole = detail_of(ledger.overview()).line
    with opened(database_url, clock) as fresh:
        monkeypatch.setattr(exposure_series, "READ_MAX", 10**6)
        assert detail_of(fresh.overview()).line == whole


# The chart.


def test_draw_chart_when_exposure_steps_then_the_path_does(database_url: str, clock: FakeClock) -> None:
    with opened(database_url, clock) as ledger:
        ledger.adopt(key="a", quantity=Decimal(1), price=Decimal(3000))
        clock.advance(1800)
        ledger.release(key="b", position_id="main-1")
        clock.advance(1800)
        drawn = chart(detail_of(ledger.overview(OverviewQuery(hours=1))), clock())
    assert drawn.ticks == ("6,000", "4,500", "3,000", "1,500", "0")
    assert drawn.line == f"M0 {HEIGHT // 2}H{WIDTH // 2}V{HEIGHT}H{WIDTH}V{HEIGHT}"
    assert drawn.area.endswith("Z")
    assert drawn.times[0] == "00:00"
    assert drawn.times[-1] == "01:00"
    assert "highest 3,000.00, now 0.00 of 5,000.00 USD" in drawn.description


def test_draw_chart_when_a_decision_has_a_time_still_to_come_then_it_stands_before_the_next_one(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        clock.advance(86_400)
        ledger.adopt(key="a", quantity=Decimal(1), price=Decimal(3000))
        clock.advance(1800 - 86_400)
        ledger.release(key="b", position_id="main-1")
        clock.advance(1800)
        drawn = chart(detail_of(ledger.overview(OverviewQuery(hours=1))), clock())
    middle, half = WIDTH // 2, HEIGHT // 2
    assert drawn.line == f"M{middle} {half}H{middle}V{half}H{middle}V{HEIGHT}H{WIDTH}V{HEIGHT}"


# Formatting.


def _scope(cap: int | None, held: str, opened: str, **more: Any) -> ScopeExposure:
    return ScopeExposure(
        "portfolio", None if cap is None else Decimal(cap), Decimal(held), Decimal(opened), "active", **more
    )


@pytest.mark.parametrize(
    ("scope", "lengths"),
    [
        (_scope(100, "0", "0"), (0, 0)),
        (_scope(100, "25", "50"), (50, 25)),
        (_scope(100, "0.001", "0.001"), (1, 1)),
        (_scope(100, "0", "99.999"), (99, 0)),
        (_scope(100, "0", "100"), (100, 0)),
        (_scope(100, "0.001", "99.999"), (99, 1)),
        (_scope(100, "100", "100"), (50, 50)),
        (_scope(0, "0", "0"), (0, 0)),
    ],
)
def test_draw_bar_when_scope_is_used_then_it_is_full_exactly_without_headroom(
    scope: ScopeExposure, lengths: tuple[int, int]
) -> None:
    assert formatting.bar(scope, 100) == lengths
    assert [type(length) for length in formatting.bar(scope, 100)] == [int, int], "a page writes a bool as True"


def test_show_tags_when_one_has_several_values_then_each_is_there(ledger: Ledger) -> None:
    tags = {"desk": ["b", "a"], "strategy": "funding", "venue": ["okx", "bybit"], "symbol": "BTC"}
    for key, given, words in (
        ("1", tags, "bybit, okx · BTC · funding · desk=a · desk=b"), ("2", {}, formatting.NONE),
        ("3", {"symbol": ["x"]}, "x"),
    ):  # fmt: skip
        ledger.reserve(key=key, tags=given, available_balance=Decimal(1))
        assert formatting.tags(ledger.positions()[-1]) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-1, "0 s"), (59.9, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min"), (90_000, "1 d 1 h")],
)
def test_show_duration_when_it_grows_then_two_units_are_enough(seconds: float, words: str) -> None:
    assert formatting.duration(seconds) == words


@pytest.mark.parametrize(
    ("more", "standing"),
    [
        ({}, "active"),
        ({"frozen": True}, "unreconciled"),
        ({"fresh_until": START}, "unreconciled"),
        ({"fresh_until": START + timedelta(seconds=1)}, "active"),
    ],
)
def test_tell_standing_when_reservations_would_be_denied_then_it_is_not_active(
    more: dict[str, Any], standing: str
) -> None:
    assert formatting.status_label(_scope(1, "0", "0", **more), START) == standing


# Labels.


def test_tell_decision_when_it_is_of_any_verb_then_the_words_say_what_happened(
    database_url: str, clock: FakeClock
) -> None:
    with opened(database_url, clock) as ledger:
        told_of = {decision.command: decision_label(decision) for decision in one_of_each(ledger, clock)}
    assert told_of == {
        "set_cap": "venue=bybit has no cap any more",
        "reserve": "1,000.00 held, the most for one position",
        "extend": "hold now ends at 00:01:30Z",
        "confirm": "filled 0.01, counts 500.00",
        "release": "closed 0.01, 500.00 given back",
        "fill": "filled 3, 3 in all, counts 30.00, the rest stays held",
        "retag": "main-9, no more in symbol=A, now in desk=x, symbol=B: moved",
        "reprice": "main-9 counts 12 a coin, 6.00 more: month end",
        "rename": "main-9 is of S now, 24,000 for one: split",
        "expire": "hold ran out unconfirmed, 1,000.00 given back",
        "adopt": "took over 1 found at the exchange, counts 2,000.00",
        "halt": "venue=okx reducing: positions may close, none may open: maintenance",
        "resume": "venue=okx active again",
        "freeze": "portfolio frozen, it differs from the exchange: drift-1",
        "thaw": "portfolio no longer frozen",
        "reconciled": "portfolio compared with the exchange, trusted until 02:00:00Z",
        "account_seen": "account=okx/main seen, 900.00 free, trusted until 02:00:00Z",
        "equity_seen": "bot=e capped at 400.00, which follows the equity of 800.00: run 7",
        "remark": "drift-1: close_requested: by hand",
        "step_back": "time set back to the clock's, 23:59:59Z: the decision before had a wrong time",
    }
    assert told_of.keys() == {*COMMANDS, "expire", "step_back"}


def test_tell_decision_when_it_was_denied_then_the_words_are_the_reason(database_url: str, clock: FakeClock) -> None:
    with opened(database_url, clock) as ledger:
        ledger.set_cap(key="cap", portfolio="main", scope="venue=bybit", cap=Decimal(0))
        assert (
            decision_label(ledger.reserve(key="a", tags={"venue": "bybit"})) == "the cap of venue=bybit leaves nothing"
        )
        late = ledger.reserve(key="b")
        clock.advance(61)
        filled = ledger.confirm(key="c", position_id=str(late.position_id), quantity=Decimal(1), price=Decimal(10))
        assert decision_label(filled) == "filled 1, counts 10.00, after its hold had expired"


# Drifts.


@pytest.mark.parametrize(
    ("state", "offered"), [("confirmed", ("adopt", "ignore", "close")), ("acknowledged", ("adopt",))]
)
def test_drift_actions_when_a_drift_is_ignored_then_only_adopting_it_is_offered(
    state: DriftState, offered: tuple[str, ...]
) -> None:
    drift = replace(DRIFT, kind="quantity_differs", state=state, excess=Decimal(1), requested=None)
    assert formatting.drift_actions(drift) == offered


@pytest.mark.parametrize(
    ("kind", "ledger", "venue", "offered"),
    [
        ("missing_position", Decimal(1), Decimal(0), ("adopt", "ignore")),
        ("quantity_differs", Decimal(2), Decimal(1), ("adopt", "ignore")),
        ("quantity_differs", Decimal(-2), Decimal(-1), ("adopt", "ignore")),
        ("legs_unequal", Decimal(2), Decimal(1), ("ignore",)),
        ("balance_below_holds", None, Decimal(1), ("ignore",)),
    ],
)
def test_drift_actions_when_the_exchange_shows_less_then_it_can_be_adopted_where_positions_can_be_released(
    kind: DriftKind, ledger: Decimal | None, venue: Decimal, offered: tuple[str, ...]
) -> None:
    drift = replace(
        DRIFT, kind=kind, state="confirmed", ledger_quantity=ledger, venue_quantity=venue, excess=Decimal(0)
    )
    assert formatting.drift_actions(drift) == offered
