"""The caller's decimal context changes nothing: every answer is the same in a hostile one, and it is left as it was."""

from __future__ import annotations

import decimal
import io
import time
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import (
    Confirm,
    DynamicSizer,
    DynamicSizingSettings,
    InstrumentInfo,
    Ledger,
    LedgerError,
    Leg,
    PositionSizer,
    Release,
    Reserve,
    TradingSettings,
    round_to_step,
)
from ledger_sizer.client import LedgerClient
from ledger_sizer.dashboard.chart import chart
from ledger_sizer.dashboard.overview_screen import render_overview
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.overview import OverviewQuery
from ledger_sizer.replay import Plan, file_source, generated_source, replay
from ledger_sizer.replay.report_json import report_document
from tests.conftest import NewDatabase
from tests.support.accounts import PERP as PERP_MARKET
from tests.support.accounts import Desk, short
from tests.support.clock import FakeClock
from tests.support.command_line import CommandLine, own_logging
from tests.support.decimal_contexts import HOSTILE, hostile
from tests.support.interfaces import SETTINGS
from tests.support.market_histories import csv_lines, quiet_bars
from tests.support.services import served

D = Decimal
"""Many digits everywhere, so that any rounding shows."""
TAGS = {"venue": "bybit", "symbol": "BTC", "strategy": "funding"}
SPOT = InstrumentInfo("BTC/USDT", D("0.00010"), D("123.456789"), D("0.00010"), D("5.000000001"))
PERP = InstrumentInfo("BTC/USDT:USDT", D("0.1"), D(123456), D("0.1"), D("5.01"), contract_size=D("0.00100"))
ASK: dict[str, Any] = {
    "tags": TAGS, "signal_score": D("0.987654321987654321"), "price": D("51234.56789012345"),
    "available_balance": D("12345.67890123456789"), "spot_instrument": SPOT, "perp_instrument": PERP,
    "spot_fee_rate": D("0.00098765432109876"), "ttl_seconds": D("30.123456"),
}  # fmt: skip
FILL: dict[str, Any] = {"quantity": D("0.01712345"), "price": D("51236.00012345"), "spot_price": D("51233.99987")}
LEGS = [
    Leg("bybit", "ETH", "spot", "buy", D("1.23456789"), D("2345.67891")),
    Leg("okx", "ETH", "swap", "sell", D("0.7654321")),
]
BAD_NUMBERS = (D("NaN"), D("-Infinity"), D("1E+31"), D("-123456.789"), D("1E-37"), D("1.2345678E+29"), 0.1)

Answer = Callable[..., Any]


def outcome(call: Answer, **arguments: Any) -> Any:
    """Return what a call answers: the value, or the error's words."""
    try:
        return call(**arguments)
    except (LedgerError, ArithmeticError) as error:
        return (type(error).__name__, str(error), getattr(error, "field", None))


def sizes() -> list[Any]:
    """Return the answers of the sizers."""
    sizer = PositionSizer(TradingSettings())
    settings = DynamicSizingSettings(enabled=True, min_allocation_fraction=D("0.312345678901234567"))
    dynamic = DynamicSizer(sizer, settings, D("1234.567890123456789"))
    legs = {"spot_instrument": SPOT, "perp_instrument": PERP}
    fit = {"price": ASK["price"], "available_balance": ASK["available_balance"], **legs}
    return [
        round_to_step(D("12345.678901234567890123456789012"), D("0.0000000003")),
        outcome(round_to_step, value=D(1), step=D(0)),
        sizer.calculate_quantity(ASK["price"], ASK["available_balance"], SPOT),
        sizer.calculate_matching_quantity(**fit),
        sizer.validate_matching_quantity(D("1.02040816326530612"), D("1.00000000000000001")),
        sizer.validate_matching_quantity(D("1.02040816326530613"), D(1), D("0.0200000000000000001")),
        *[dynamic.compute_signal_budget(ASK["signal_score"], D(used)) for used in ("0", "4123.4567891234", "5000")],
        dynamic.calculate_matching_quantity(ASK["signal_score"], D("3999.987654321"), **fit),
        dynamic.size(ASK["signal_score"], D("3999.987654321"), **fit),
        *[outcome(dynamic.size, **{"signal_score": D(1), "current_exposure": D(0), **fit, "price": bad})
          for bad in BAD_NUMBERS],
        *[outcome(dynamic.size, **{"signal_score": bad, "current_exposure": D(0), **fit}) for bad in BAD_NUMBERS],
    ]  # fmt: skip


def trade(ledger: Ledger | LedgerClient, clock: FakeClock) -> list[Any]:
    """Send every verb, well-formed and not, and return all answers."""
    held = [f"main-{seq}" for seq in (5, 6, 7)]
    answers = [
        outcome(ledger.set_cap, key="cap", cap=D("4000.123456789")),
        outcome(ledger.set_cap, key="cap/venue", scope="venue=bybit", cap=D("3456.789012345678")),
        outcome(ledger.reserve, key="dry", dry_run=True, **ASK),
        outcome(ledger.reserve, key="tiny", tags=TAGS, available_balance=D("0.0000000012345")),
        outcome(ledger.reserve, key="negative", tags=TAGS, available_balance=D("-1234.56789")),
        *[outcome(ledger.reserve, key=name, **ASK) for name in "abc"],
        outcome(ledger.extend, key="a/extend", position_id=held[0], ttl_seconds=D("90.1234567")),
        outcome(ledger.confirm, key="a/fill", position_id=held[0], **FILL),
        outcome(ledger.confirm, key="b/fill", position_id=held[1], **{**FILL, "legs": LEGS}),
        outcome(ledger.confirm, key="c/part", position_id=held[2], **FILL, rest="hold"),
        outcome(ledger.fill, key="c/fill", position_id=held[2], filled_quantity=D("0.0123456"), price=D("50123.4567")),
        outcome(ledger.reserve, key="c/more", position_id=held[2], amount_usd=D("12.3456789"), price=ASK["price"]),
        outcome(ledger.retag, key="c/tags", position_id=held[2], tags={"desk": ["one", "two"]}),
        outcome(ledger.reprice, key="c/price", position_id=held[2], price=D("48765.4321")),
        outcome(ledger.extend, key="c/known", position_id=held[2], until_known=True),
        outcome(ledger.release, key="a/part", position_id=held[0], quantity=D("0.00812345")),
        outcome(ledger.release, key="b/part", position_id=held[1], quantity=D("0.01")),
        outcome(ledger.release, key="too much", position_id=held[0], quantity=D("123.4567891")),
        outcome(ledger.adopt, key="found", quantity=D("1.23456789"), price=D("2345.67891"), tags=TAGS, legs=LEGS),
        *[outcome(ledger.halt, key="halt", scope="venue=bybit"), outcome(ledger.reserve, key="halted", **ASK)],
        *[outcome(ledger.resume, key="resume", scope="venue=bybit"), outcome(ledger.freeze, key="freeze")],
        *[outcome(ledger.thaw, key="thaw"), outcome(ledger.reconciled, key="run", fresh_until=None)],
        outcome(ledger.account_seen, key="seen", scope="account=okx/main", free=D("4567.8901234567")),
        outcome(ledger.set_cap, key="share", scope="bot=e", share_of_equity=D("0.8765432109")),
        outcome(ledger.equity_seen, key="equity", scope="bot=e", equity=D("3456.7890123456")),
        outcome(ledger.rename, key="b/name", position_id=held[1], asset="S", ratio=D("24000.1234567")),
        outcome(ledger.remark, key="say", about="drift-7", event="close_requested"),
        *outcome(ledger.submit, commands=[Reserve(key="x", **ASK), Release(key="y", position_id=held[2])], atomic=True),
    ]
    clock.advance(120)
    late = Reserve(key="late", **{**ASK, "min_notional_usd": D("4567.89012345678")})
    answers += outcome(ledger.submit, commands=[late, Confirm(key="late/fill", position_id="main-99", **FILL)])
    for place, bad in enumerate(BAD_NUMBERS):
        for name in ("signal_score", "price", "available_balance", "spot_fee_rate", "min_notional_usd", "ttl_seconds"):
            answers.append(outcome(ledger.reserve, key=f"bad-{place}-{name}", **{**ASK, name: bad}))
        answers.append(outcome(ledger.adopt, key=f"bad-{place}", quantity=bad, price=D(1)))
        answers.append(outcome(ledger.set_cap, key=f"bad-cap-{place}", cap=bad))
    return [str(one) if isinstance(one, LedgerError) else one for one in answers]


def reads(ledger: Ledger | LedgerClient) -> list[Any]:
    """Return what every read answers."""
    exposure = ledger.exposure()
    overview = ledger.overview(OverviewQuery("main", rows=3, hours=1))
    assert overview.detail is not None
    return [
        exposure, [(one.exposure, one.headroom, one.overage) for one in (exposure, *exposure.scopes)],
        ledger.exposure(as_of=9), ledger.positions(), ledger.history(ascending=True), ledger.portfolios(),
        [str(ledger.explain(one.seq)) for one in ledger.history()], overview,
        chart(overview.detail, overview.read_at), _screen(overview),
    ]  # fmt: skip


def _screen(overview: Any) -> str:
    rich = pytest.importorskip("rich.console")
    console = rich.Console(file=io.StringIO(), width=120, height=60)
    console.print(render_overview(overview, source="here", width=120, height=None))
    return str(console.file.getvalue())


CONTEXTS = pytest.mark.parametrize("context", HOSTILE)


def in_both(context: str, play: Callable[[], Any]) -> tuple[Any, Any]:
    """Return what `play` answers in the usual context, and in the hostile one."""
    with decimal.localcontext(decimal.Context()):
        usual = play()
    with hostile(context):
        odd = play()
    return usual, odd


def assert_same(usual: Sequence[Any], odd: Sequence[Any]) -> None:
    """Fail at the first answer that differs, also in the digits of an equal number."""
    for number, (one, other) in enumerate(zip(usual, odd, strict=True)):
        assert (other, repr(other)) == (one, repr(one)), number


@CONTEXTS
def test_size_when_the_context_is_hostile_then_every_figure_is_the_same(context: str) -> None:
    assert_same(*in_both(context, sizes))


@CONTEXTS
@pytest.mark.parametrize("face", ["embedded", "client"])
def test_trade_and_read_when_the_context_is_hostile_then_every_answer_is_the_same(
    context: str, face: str, new_database: NewDatabase, engine_kind: str
) -> None:
    def play() -> list[Any]:
        clock, url = FakeClock(), new_database(engine_kind)
        if face == "embedded":
            with Ledger.open(url, settings=SETTINGS, clock=clock) as ledger:
                return [*trade(ledger, clock), *reads(ledger), ledger.verify().ok]
        with served(url, settings=SETTINGS, clock=clock) as service, LedgerClient(service.url) as client:
            return [*trade(client, clock), *reads(client), service.ledger.verify().ok]

    usual, odd = in_both(context, play)
    assert_same(usual, odd)
    assert {one.command for one in usual if hasattr(one, "command")} >= set(COMMANDS)


@CONTEXTS
def test_export_when_the_context_is_hostile_then_every_byte_is_the_same(context: str, database_url: str) -> None:
    clock = FakeClock()
    with Ledger.open(database_url, settings=SETTINGS, clock=clock) as ledger:
        trade(ledger, clock)
        usual, odd = in_both(
            context, lambda: [list(ledger.export(form=form)) for form in ("csv", "ndjson")] + [ledger.verify()]
        )
    assert_same(usual, odd)


@CONTEXTS
def test_reconcile_when_the_context_is_hostile_then_every_drift_and_command_is_the_same(
    context: str, new_database: NewDatabase, engine_kind: str
) -> None:
    """A hedge of which the exchange shows less, a part adopted, and dust: all sums of `compare` and `adoption`."""

    def play() -> list[Any]:
        desk = Desk(new_database(engine_kind), FakeClock(), policy={"missing_position": "freeze"})
        try:
            legs = [
                Leg("bybit", "BTC/USDT", "spot", "buy", D("0.02"), D("50000.123456")),
                Leg("bybit", PERP_MARKET, "swap", "sell", D("0.0198765"), D("50000.123456")),
            ]
            desk.ledger.adopt(key="a", quantity=D("0.02"), price=D("50000.123456"), tags=TAGS, legs=legs)
            desk.ledger.reserve(key="h", **{**ASK, "ttl_seconds": 3600})
            desk.account.shows(short("0.0112233"), BTC="0.0200000001", ETH="1.234567891")
            seen = [(one.kind, one.subject, one.excess, one.shortfall, one.detail) for one in desk.run(2).live]
            adopted = []
            for drift in desk.run().live:
                desk.clock.advance(3)
                answer = outcome(desk.reconciler.operator.adopt, drift_id=drift.id, reason="as it is")
                adopted.append(answer)
            return [*seen, *adopted, *desk.ledger.history(ascending=True), desk.ledger.verify().ok, *desk.run(2).live]
        finally:
            desk.close()

    usual, odd = in_both(context, play)
    assert_same(usual, odd)


@CONTEXTS
def test_replay_when_the_context_is_hostile_then_the_report_is_the_same(
    context: str, new_database: NewDatabase, engine_kind: str, tmp_path: Path
) -> None:
    path = tmp_path / "quiet.csv"
    path.write_text("\n".join(csv_lines(quiet_bars(["0.000123456789"] * 20, price="51234.56789"))) + "\n")

    def play() -> list[Any]:
        reports = [
            replay(source, Plan(), new_database(engine_kind), timer=time.perf_counter)
            for source in (file_source(path), generated_source(7, 30))
        ]
        heads = [(one.name, one.head) for report in reports for one in report.portfolios]
        documents = [report_document(report) for report in reports]
        return [heads, *[{**document, "timing": None} for document in documents]]

    usual, odd = in_both(context, play)
    assert_same(usual, odd)


@CONTEXTS
def test_run_command_lines_when_the_context_is_hostile_then_every_output_is_the_same(
    context: str, new_database: NewDatabase, engine_kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asks = [
        ("caps", "set", "main", "4000.123456789", "--key", "cap"),
        ("reserve", "--key", "a", "--price", "51234.56789", "--balance", "0.000000001"),
        ("reserve", "--key", "b", "--price", "51234.56789", "--balance", "932.123456789", "--ttl", "3600"),
        ("reserve", "--key", "c", "--price", "1e31"),
        ("reserve", "--key", "d", "--price", "NaN"),
        ("confirm", "main-3", "--key", "f", "--quantity", "0.0179999", "--price", "51236.00001"),
        ("exposure",),
        ("caps", "show"),
    ]

    def play() -> list[Any]:
        command_line = CommandLine(capsys, new_database(engine_kind))
        with own_logging():
            results = [command_line(*ask) for ask in asks]
        return [(one.code, one.out if "at " not in one.out else one.code, one.err) for one in results]

    usual, odd = in_both(context, play)
    assert_same(usual, odd)
