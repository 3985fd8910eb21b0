"""Many holds that end at once: a batch frees a bounded slice, portfolios take turns, and in the end all are free."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from itertools import islice

import pytest

from ledger_sizer import AppSettings, Confirm, Extend, Ledger, LedgerSettings, Release, Reserve, WrongState
from ledger_sizer.model.decisions import DecisionRecord
from ledger_sizer.storage.write_store import EXPIRIES_MAX
from tests.support.clock import FakeClock
from tests.support.gates import Callers, Gated, count_commits, one, wait_pending
from tests.support.ledgers import TAGS, Intruder, assert_verified, figures, position_of

D = Decimal
MANY = 2 * EXPIRIES_MAX + 10


@pytest.fixture
def ledger(ledger: Ledger) -> Ledger:
    """Return a ledger of four portfolios. Their cap, 10 million USD, stops no hold of 1000 USD."""
    for portfolio in ("main", "b", "c", "d"):
        ledger.set_cap(key="cap", portfolio=portfolio, cap=D(10**7))
    return ledger


@pytest.fixture
def commits(ledger: Ledger) -> list[list[tuple[str, str]]]:
    """Return the commits from now on: of each decision the portfolio and the command."""
    seen: list[list[tuple[str, str]]] = []

    def observe(records: Sequence[DecisionRecord], _seconds: float) -> None:
        seen.append([(record.portfolio, record.command) for record in records])

    ledger.observe = observe
    return seen


def hold(ledger: Ledger, count: int, portfolio: str = "main", first: int = 0) -> list[str]:
    """Reserve `count` holds of 10 seconds. Return their position ids."""
    commands = [
        Reserve(key=f"hold-{n}", portfolio=portfolio, tags=TAGS, ttl_seconds=10) for n in range(first, first + count)
    ]
    return [position_of(decision) for decision in ledger.submit(commands)]  # type: ignore[arg-type]


def freed_of(commits: Sequence[Sequence[tuple[str, str]]]) -> list[dict[str, int]]:
    """Return, for each commit that freed holds, how many of which portfolio."""
    counts = []
    for commit in commits:
        names = [portfolio for portfolio, command in commit if command == "expire"]
        if names:
            counts.append({name: names.count(name) for name in names})
    return counts


def test_sweep_when_thousands_are_due_at_once_then_each_commit_frees_a_slice_and_all_end_in_order(
    ledger: Ledger, clock: FakeClock, commits: list[list[tuple[str, str]]]
) -> None:
    hold(ledger, MANY)
    clock.advance(10)
    assert ledger.sweep() == MANY
    assert freed_of(commits) == [{"main": EXPIRIES_MAX}, {"main": EXPIRIES_MAX}, {"main": 10}]
    ended = [one.record.position for one in islice(ledger.history(command="expire", limit=1000, ascending=True), MANY)]
    assert ended == sorted(ended), "those of one time go in the order of their numbers"  # type: ignore[type-var]
    assert figures(ledger) == (0, 0)
    assert ledger.sweep() == 0
    assert_verified(ledger)


def test_sweep_when_the_last_slice_is_full_then_no_hold_is_left(ledger: Ledger, clock: FakeClock) -> None:
    hold(ledger, EXPIRIES_MAX)
    clock.advance(10)
    assert ledger.sweep("main") == EXPIRIES_MAX
    assert figures(ledger) == (0, 0)


def test_sweep_when_several_portfolios_have_many_due_then_they_take_turns(
    ledger: Ledger, clock: FakeClock, commits: list[list[tuple[str, str]]]
) -> None:
    hold(ledger, MANY)
    hold(ledger, EXPIRIES_MAX + 1, "b")
    hold(ledger, 1, "c")
    clock.advance(10)
    assert ledger.sweep() == MANY + EXPIRIES_MAX + 2
    assert freed_of(commits) == [
        {"main": EXPIRIES_MAX},
        {"b": EXPIRIES_MAX},
        {"c": 1},
        {"main": EXPIRIES_MAX},
        {"b": 1},
        {"main": 10},
    ]


def test_sweep_when_it_is_under_way_then_others_write_between_its_slices(ledger: Ledger, clock: FakeClock) -> None:
    hold(ledger, MANY)
    clock.advance(10)
    sweep = ledger.sweep_in_slices()
    assert next(sweep) == EXPIRIES_MAX
    other = ledger.reserve(key="other", portfolio="b")
    same = ledger.reserve(key="same")
    assert other.granted
    assert other.exposure_before == 0
    assert same.exposure_before == 10 * 1000, "its own batch freed a slice, too"
    assert list(sweep) == [10]
    assert_verified(ledger)


def test_write_when_thousands_are_due_in_its_portfolio_then_its_batch_frees_one_slice(
    ledger: Ledger, clock: FakeClock, commits: list[list[tuple[str, str]]]
) -> None:
    hold(ledger, MANY)
    clock.advance(10)
    commits.clear()
    for n in range(4):
        ledger.reserve(key=f"{n}", tags={"venue": "okx"})
    assert [len(commit) for commit in commits] == [EXPIRIES_MAX + 1, EXPIRIES_MAX + 1, 10 + 1, 1]
    assert figures(ledger) == (4000, 0)
    assert_verified(ledger)


def test_write_when_many_are_due_in_each_portfolio_of_a_batch_then_they_share_the_slice(
    ledger: Ledger, clock: FakeClock, commits: list[list[tuple[str, str]]]
) -> None:
    portfolios = ("main", "b", "c", "d")
    for portfolio in portfolios:
        hold(ledger, EXPIRIES_MAX, portfolio)
    clock.advance(10)
    ledger.submit([Reserve(key="next", portfolio=portfolio) for portfolio in portfolios])
    assert freed_of(commits) == [dict.fromkeys(portfolios, EXPIRIES_MAX // 4)]
    assert ledger.sweep() == 3 * EXPIRIES_MAX


def test_write_when_its_hold_is_due_but_not_among_the_first_then_it_ends_before_the_command(
    ledger: Ledger, clock: FakeClock
) -> None:
    hold(ledger, EXPIRIES_MAX)
    clock.advance(1)
    late, extended, released, _, _ = hold(ledger, 5, first=MANY)
    clock.advance(10)
    fill, longer, end = ledger.submit(
        [
            Confirm(key="fill", position_id=late, quantity=D(1), price=D(10)),
            Extend(key="longer", position_id=extended),
            Release(key="end", position_id=released, held_only=True),
        ]
    )
    assert isinstance(longer, WrongState)
    assert isinstance(end, WrongState)
    assert ledger.position(position_of(fill)).origin == ledger.position(late).number  # type: ignore[arg-type]
    assert figures(ledger) == (2000, 10), "two are due that no command named"
    assert ledger.sweep() == 2
    assert_verified(ledger)


def test_reserve_again_when_its_hold_is_due_but_not_among_the_first_then_the_hold_has_ended(
    ledger: Ledger, clock: FakeClock
) -> None:
    """The block of `hold` must not begin on a hold whose time is over."""
    hold(ledger, EXPIRIES_MAX + 1)
    (last,) = hold(ledger, 1, first=MANY)
    clock.advance(10)
    with pytest.raises(WrongState, match="expired"), ledger.hold(key=f"hold-{MANY}", tags=TAGS, ttl_seconds=10):
        pytest.fail("nothing is held for this block")
    assert ledger.position(last).state == "expired"
    assert figures(ledger) == (1000, 0)


def test_reserve_when_thousands_are_due_then_what_is_left_of_them_still_counts(
    ledger: Ledger, clock: FakeClock
) -> None:
    """A bounded batch may deny what a later one grants. It never grants above the cap. A dry run says the same."""
    hold(ledger, MANY)
    ledger.set_cap(key="low", cap=D(5000))
    clock.advance(10)
    for n in range(3):
        dry = ledger.reserve(key="dry", dry_run=True)
        real = ledger.reserve(key=f"real-{n}")
        assert dry.reason == real.reason == ("cap_exceeded" if n < 2 else None)
        assert dry.exposure_before == real.exposure_before == max(MANY - (n + 1) * EXPIRIES_MAX, 0) * 1000
    assert_verified(ledger)


def test_sweep_when_commands_wait_in_the_queue_then_its_slice_is_a_batch_of_its_own(database_url: str) -> None:
    """Otherwise it would share the slice with all portfolios of a batch, and free one hold at a time."""
    with Gated(database_url) as desk:
        ledger = desk.open()
        for n in range(3):
            ledger.reserve(key=f"{n}", available_balance=D(1), ttl_seconds=10)
        desk.gate.advance(10)
        callers = Callers(ledger)
        with count_commits(ledger) as sizes, ThreadPoolExecutor(1) as sweeper:
            with desk.gate.closed():
                callers.ask(one("first", portfolio="b"))
                desk.gate.wait_reached()
                callers.ask(one("before", portfolio="b"))
                freed = sweeper.submit(ledger.sweep, "main")
                wait_pending(ledger, 3)
                callers.ask(one("after", portfolio="b"))
            assert freed.result() == 3
        assert sizes == [1, 1, 3, 1]


@pytest.fixture
def slow_server(database_url: str) -> None:
    """Make each hold's end take 3 ms on the server."""
    with Intruder(database_url) as intruder:
        if int(intruder.rows("SHOW server_version_num")[0][0]) < 170_000:
            pytest.skip("the server has no transaction_timeout: PostgreSQL 17 brought it")
        intruder.run(
            """
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN PERFORM pg_sleep(0.003); RETURN NEW; END $$;
            CREATE TRIGGER decisions_slow BEFORE INSERT ON decisions
                FOR EACH ROW WHEN (NEW.command = 'expire') EXECUTE FUNCTION slow();
            """
        )


@pytest.mark.slow
@pytest.mark.parametrize("engine_kind", ["postgresql"], indirect=True)
def test_sweep_when_all_at_once_would_outlast_the_transaction_timeout_then_all_are_freed(
    database_url: str, clock: FakeClock, slow_server: None
) -> None:
    settings = AppSettings(ledger=LedgerSettings(busy_timeout_seconds=1, retries_max=1))  # a transaction may take 2 s
    with Ledger.open(database_url, settings=settings, clock=clock) as ledger:
        ledger.set_cap(key="cap", cap=D(10**7))
        hold(ledger, 1000)
        clock.advance(10)
        assert ledger.sweep() == 1000
        assert ledger.reserve(key="next").exposure_before == 0
        assert_verified(ledger)
