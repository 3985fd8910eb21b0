"""`ledger-sizer drifts list`: the drifts as a table, the same for `reconcile`."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import options, output
from ledger_sizer.cli.drift_activity import activity_to_json, fetch_activity, show_activity
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, Cursor, DatabaseUrl, Json, Limit
from ledger_sizer.cli.output import ALWAYS, Cell, Column
from ledger_sizer.model.choices import DriftFilter, DriftKind

if TYPE_CHECKING:
    from datetime import datetime
    from decimal import Decimal

    from ledger_sizer.model.drift_reports import DriftPosition, DriftReport
    from ledger_sizer.model.reconciliation import Drift, Finding

State = Annotated[DriftFilter | None, typer.Option("--state", help="live: open or confirmed.")]
Kind = Annotated[DriftKind | None, typer.Option("--kind", help="One kind only.")]
Venue = Annotated[str | None, typer.Option("--venue", metavar="VENUE", help="At one venue only.")]
Account = Annotated[str | None, typer.Option("--account", metavar="NAME", help="At one account only.")]
Symbol = Annotated[
    str | None, typer.Option("--symbol", metavar="SYMBOL", help="A market, an asset, or the coin of markets.")
]

LIST_HELP = help_epilog("drifts list --state live --json", "drifts list --venue bybit --symbol ETH", exits=NEVER_DENIED)


def list_drifts(
    portfolio: AnyPortfolio = None,
    state: State = None,
    kind: Kind = None,
    venue: Venue = None,
    account: Account = None,
    symbol: Symbol = None,
    cursor: Cursor = None,
    limit: Limit = "100",
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Show drifts, newest first: what differs where, what it is worth, what it stops, and what to do next."""
    from ledger_sizer.cli.ledger_session import engine_at
    from ledger_sizer.reconcile import listings
    from ledger_sizer.wire.reconciliation import drift_to_json

    with engine_at(database_url) as engine:
        page = listings.list_drifts(
            engine, portfolios=None if portfolio is None else [portfolio],
            chosen=listings.DriftChoice(state, kind, venue, account, symbol), cursor=cursor,
            limit=options.whole_number(limit, "limit"),
        )  # fmt: skip
    if as_json:
        output.write_json_list((drift_to_json(drift) for drift in page), lambda: page.cursor)
        return 0
    show_drifts(page.items, empty="no drifts")
    if page.cursor is not None:
        output.note(f"more: --cursor {page.cursor}")
    return 0


DriftId = Annotated[str, typer.Argument(metavar="DRIFT", help="Its number, as `drifts list` shows it.")]

SHOW_HELP = help_epilog("drifts show 1", "drifts show 1 --json", "drifts show 1 --activity", exits=NEVER_DENIED)


def show(
    drift: DriftId,
    activity: Annotated[
        bool, typer.Option("--activity", help="Ask the exchange what explains it: fills, liquidations, transfers.")
    ] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Show one drift in full: what it means, what the ledger has there, what happened to it, and what to do next.

    With --activity, its account is asked for what happened there since the last good run: a week at most, as far as
    the account's key may read it.
    """
    from ledger_sizer.cli.ledger_session import engine_at
    from ledger_sizer.reconcile.drift_report import read_report
    from ledger_sizer.wire.reconciliation import report_of_drift_to_json

    with engine_at(database_url) as engine:
        report = read_report(engine, options.whole_number(drift, "drift"))
    asked = fetch_activity(report.drift.id, database_url) if activity else None
    if as_json:
        told = {} if asked is None else {"activity": activity_to_json(asked)}
        output.write_json(report_of_drift_to_json(report) | told)
        return 0
    _show_report(report)
    if asked is not None:
        show_activity(asked)
    return 0


def _show_report(report: "DriftReport") -> None:
    drift = report.drift
    asked = ", close requested" if drift.requested and drift.live else ""
    output.headline(f"drift {drift.id}, {drift.kind}, {drift.state}{asked}", "denied" if drift.live else "ok")
    freezes = f"{drift.frozen_scope}{'' if drift.freezes else ', no longer required'}" if drift.frozen_scope else None
    output.details([
        ("means", report.meaning),
        ("portfolio", drift.portfolio),
        ("account", "/".join(filter(None, (drift.venue, drift.account))) or None),
        ("about", f"{drift.subject} {drift.side}".strip()),
        ("ledger", drift.ledger_quantity),
        ("exchange", drift.venue_quantity),
        ("difference", report.difference or None),
        ("detail", drift.detail),
        ("policy", drift.policy),
        ("counted by", drift.position_id),
        ("freezes", freezes),
        ("frozen since", report.frozen_at if drift.freezes else None),
        ("first seen", _run_text(drift.first_run, report.first_run_at)),
        ("last seen", _run_text(drift.last_run, report.last_run_at)),
        ("decided", None if drift.actor is None else f"{drift.actor}: {drift.reason}"),
    ])  # fmt: skip
    _show_positions("positions of the ledger there", report.positions)
    if report.positions_left_out:
        output.note(f"{report.positions_left_out:,} older positions are not shown")
    _show_positions("holds that may explain it", report.holds)
    if report.events:
        output.write("\nso far:")
        output.table(
            [Column("seq"), Column("when"), Column("who"), Column("what"), Column("why", priority=ALWAYS)],
            [(one.seq, one.decided_at, one.actor, one.event, one.note) for one in report.events],
            empty="",
        )
    if report.steps:
        output.write("\nnext:")
        for step in report.steps:
            output.write(f"  {step.words}")
            if step.command is not None:
                output.write(f"      {step.command}")


def _show_positions(title: str, positions: "Sequence[DriftPosition]") -> None:
    if not positions:
        return
    output.write(f"\n{title}:")
    output.table(
        [Column("position"), Column("state"), Column("side"), Column("coins"), Column("opened"), Column("by"),
         Column("tags", priority=ALWAYS)],
        [
            (one.position_id, one.state, one.side or None, one.quantity, one.opened_at, one.opened_by,
             " ".join(f"{name}={'+'.join(one.tags.values_of(name))}" for name in one.tags))
            for one in positions
        ],
        empty="",
    )  # fmt: skip


def _run_text(run: int, ended: "datetime | None") -> str:
    return f"run {run}" if ended is None else f"run {run}, {ended:%Y-%m-%d %H:%M:%S}Z"


def show_drifts(found: "Sequence[Drift]", *, empty: str) -> None:
    """Write drifts as a table: on a terminal two lines each, so that they fit 100 columns; elsewhere one line each."""
    from ledger_sizer.model.drift_words import hint

    _show([(_identity(drift), drift, _freezes(drift), drift.opened_at, hint(drift)) for drift in found], empty)


def show_findings(found: "Sequence[Finding]", *, empty: str) -> None:
    """Write the differences of a dry run in the same table."""
    _show([((None, one.kind, "-"), one, None, None, "") for one in found], empty)


def _show(
    rows: "Sequence[tuple[tuple[int | None, str, str], Drift | Finding, str | None, Cell, str]]", empty: str
) -> None:
    if not output.on_terminal():
        titles = ("drift", "kind", "state", "venue", "account", "subject", "side", "ledger", "exchange")
        columns = [*map(Column, titles), Column("usd", usd=True), *map(Column, ("freezes", "since", "next"))]
        cells: Iterable[Sequence[Cell]] = [
            (*identity, *(text or None for text in one.market), one.ledger_quantity, one.venue_quantity,
             cents(one.usd), freezes, since, words or None)
            for identity, one, freezes, since, words in rows
        ]  # fmt: skip
        output.table(columns, [*cells], empty=empty)
        return
    short_titles = ("drift", "market\naccount", "ledger\nexchange", "USD\nsince", "freezes", "next")
    short = [Column(title, ALWAYS, right=title in short_titles[2:4]) for title in short_titles]
    output.table(short, [_two_lines(*row) for row in rows], empty=empty)


def _two_lines(
    identity: tuple[int | None, str, str], one: "Drift | Finding", freezes: str | None, since: Cell, words: str
) -> Sequence[Cell]:
    from datetime import datetime

    from ledger_sizer.model.drift_words import usd_text

    number, kind, state = identity
    market = one.market
    first = "" if number is None else f"{number} "
    opened = f"{since:%m-%d %H:%M}Z" if isinstance(since, datetime) else ""
    held, shown = (
        "-" if quantity is None else output.figure(quantity) for quantity in (one.ledger_quantity, one.venue_quantity)
    )
    return (
        f"{first}{kind}\n{' ' * len(first)}{state}",
        f"{market.subject} {market.side}".strip() + "\n" + "/".join(filter(None, market[:2])),
        f"{held}\n{shown}",
        f"{usd_text(one.usd) or '-'}\n{opened}",
        freezes,
        words or None,
    )


def _identity(drift: "Drift") -> tuple[int | None, str, str]:
    asked = ", close requested" if drift.requested and drift.live else ""
    return drift.id, drift.kind, f"{drift.state}{asked}"


def _freezes(drift: "Drift") -> str | None:
    return drift.frozen_scope if drift.freezes else None


def cents(usd: "Decimal | None") -> Cell:
    """Return an amount rounded to the cent."""
    from ledger_sizer.model.units import exact_arithmetic

    with exact_arithmetic():
        return None if usd is None else round(usd, 2)
