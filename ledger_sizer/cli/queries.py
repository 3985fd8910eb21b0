"""The commands that read: exposure, positions, history, explain."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ledger_sizer.cli import errors, options, output, position_import
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import (
    AnyPortfolio,
    CommandName,
    Cursor,
    DatabaseUrl,
    Everything,
    Json,
    Limit,
    OfKey,
    Portfolio,
    PortfolioOrDesk,
    ReasonName,
    Tag,
)
from ledger_sizer.cli.output import Cell, Column
from ledger_sizer.model.choices import ExportForm, Outcome, PositionFilter
from ledger_sizer.model.units import decimal_text, exact_arithmetic

if TYPE_CHECKING:
    from ledger_sizer import Decision, Exposure, Page, Position, ScopeExposure
    from ledger_sizer.model.choices import Status
    from ledger_sizer.model.legs import Leg

T = TypeVar("T")


EXPOSURE_HELP = help_epilog("exposure", "exposure --portfolio main --json", "exposure --as-of 1", exits=NEVER_DENIED)


def exposure(
    portfolio: Portfolio = "main",
    as_of: Annotated[
        str | None, typer.Option("--as-of", metavar="SEQ|TIME", help="As it was after that decision, or at that time.")
    ] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Show what a portfolio has, may have, and has left.

    One row for the whole and one for each scope: held + open = exposure, cap - exposure = headroom, above it overage.
    Below it the pools, where scopes have a guarantee: what each uses of it, what is kept for it, and what others have
    of that.
    With --as-of the decisions up to then are added up, one reading of them all.
    """
    from ledger_sizer.cli.ledger_session import ledger_at, note_unused

    is_seq = as_of is not None and as_of.isascii() and as_of.isdigit()
    point = options.whole_number(as_of or "", "as_of") if is_seq else options.timestamp(as_of, "as_of")
    with ledger_at(database_url) as ledger:
        found = ledger.exposure(portfolio, as_of=point)
        note_unused(ledger, portfolio)
        if point is None:
            _note_desk(*ledger.desk())
    if as_json:
        from ledger_sizer.wire.responses import exposure_to_json

        output.write_json(exposure_to_json(found))
        return 0
    has_accounts = any(row.free_balance is not None for row in found.scopes)
    output.table(
        [
            Column("scope"),
            Column("cap USD", usd=True),
            *([Column("cap from", priority=4)] if found.defaults else []),
            Column("held USD", usd=True, priority=5),
            Column("open USD", usd=True, priority=5),
            Column("exposure USD", usd=True),
            Column("headroom USD", usd=True),
            Column("overage USD", usd=True, alert=True),
            Column("used", priority=4, right=True),
            *([Column("free USD", usd=True), Column("promised USD", usd=True)] if has_accounts else []),
            Column("status"),
        ],
        [
            (
                row.scope,
                row.cap,
                *([row.cap_from] if found.defaults else []),
                row.held,
                row.open,
                row.exposure,
                row.headroom,
                row.overage,
                _used_percent(row),
                *([row.free_balance, row.promised] if has_accounts else []),
                row.status,
            )
            for row in found.scopes
        ],
        empty="no scopes",
    )
    if found.pools:
        _write_pools(found)
    return 0


def _write_pools(found: "Exposure") -> None:
    """Show the pools of a portfolio, and what is left to who is in none."""
    output.write("")
    output.table(
        [
            Column("pool"),
            Column("guaranteed USD", usd=True),
            Column("used USD", usd=True),
            Column("kept USD", usd=True),
            Column("lent out USD", usd=True, alert=True),
        ],
        [(pool.scope, pool.guaranteed, pool.used, pool.kept, pool.lent_out) for pool in found.pools],
        empty="",
    )
    if found.shared is not None:
        output.write(f"left to who is in no pool: {output.figure(found.shared, 2)} USD")


def _note_desk(status: "Status", change: "Decision | None") -> None:
    """Say that the desk is halted: then every portfolio is, whatever its own status."""
    if status != "active":
        who = f" by {change.actor} since {change.decided_at:%Y-%m-%dT%H:%M:%SZ}" if change is not None else ""
        output.note(f"the desk is {status}{who}, and so is every portfolio; to lift it: ledger-sizer resume -p '*'")


def _used_percent(row: "ScopeExposure") -> str | None:
    from ledger_sizer.dashboard.formatting import percent_of_cap

    used = percent_of_cap(row)
    return None if used is None else f"{used} %"


positions_group = typer.Typer(rich_markup_mode=None)
positions_group.command("import", epilog=position_import.IMPORT_HELP)(position_import.import_positions)

POSITIONS_HELP = help_epilog(
    "positions --state live",
    "positions --portfolio main --tag venue=bybit --limit 20",
    "positions --key cycle-17/BTC",
    "positions --all --json",
    exits=NEVER_DENIED,
)


@positions_group.callback(invoke_without_command=True, epilog=POSITIONS_HELP)
def positions(
    context: typer.Context,
    portfolio: AnyPortfolio = None,
    state: Annotated[
        PositionFilter | None,
        typer.Option("--state", help="live: held or open. until_known: live, with a hold that never ends by time."),
    ] = None,
    tag: Tag = None,
    key: OfKey = None,
    cursor: Cursor = None,
    limit: Limit = "100",
    everything: Everything = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """List positions, oldest first.

    A position is held (a reservation), open, closed, released or expired. An open one may hold more: `to fill` is what
    its orders may still bring.
    """
    if context.invoked_subcommand is not None:
        options.require_none_before(context)
        return 0
    from ledger_sizer.cli.ledger_session import ledger_at, note_unused

    wanted = options.tags(tag) or None
    rows = options.whole_number(limit, "limit")
    with ledger_at(database_url) as ledger:

        def page_at(cursor: str | None) -> "Page[Position]":
            return ledger.positions(portfolio, state=state, tags=wanted, key=key, cursor=cursor, limit=rows)

        if as_json:
            from ledger_sizer.wire.responses import position_to_json

            _write_json_pages(page_at, cursor, everything, position_to_json)
        else:
            _write_table_pages(page_at, cursor, everything, _POSITION_COLUMNS, _position_row, "no positions")
        note_unused(ledger, portfolio)
    return 0


_POSITION_COLUMNS = [
    Column("position"),
    Column("state"),
    Column("tags", priority=5),
    Column("held USD", usd=True),
    Column("open USD", usd=True),
    Column("quantity", priority=6),
    Column("price USD", priority=4),
    Column("opened at", priority=2),
    Column("expires at", priority=3),
    Column("to fill", priority=5),
    Column("legs", priority=1),
    Column("reference", priority=1),
]


def _position_row(position: "Position") -> tuple[Cell, ...]:
    tags = " ".join(f"{name}={value}" for name, value in position.tags.pairs) or None
    return (
        position.position_id, position.state, tags, position.held, position.open, position.quantity, position.price,
        position.opened_at, output.end_of_hold(position), position.unfilled if position.pending else None,
        ", ".join(map(_leg_words, position.legs)) or None, position.reference,
    )  # fmt: skip


def _leg_words(leg: "Leg") -> str:
    """Say how many coins of a leg filled, and of how many where more may fill."""
    with exact_arithmetic():
        of = f" of {decimal_text(leg.filled + leg.unfilled)}" if leg.unfilled else ""
    where = " ".join(part for part in (leg.venue, leg.account) if part)
    return f"{leg.side} {decimal_text(leg.filled)}{of} {leg.symbol}{' at ' if where else ''}{where}"


HISTORY_HELP = help_epilog(
    "history --limit 20",
    "history --outcome denied --reason cap_exceeded --since 2026-01-01T00:00:00Z",
    "history --symbol BTC --strategy funding --all --json",
    "history --key cycle-17/BTC",
    "history --export csv --since 2026-01-01T00:00:00Z --out history.csv",
    exits=NEVER_DENIED,
)


def history(
    portfolio: PortfolioOrDesk = "main",
    symbol: Annotated[str | None, typer.Option("--symbol", metavar="TAG", help="With the tag symbol=TAG.")] = None,
    strategy: Annotated[
        str | None, typer.Option("--strategy", metavar="TAG", help="With the tag strategy=TAG.")
    ] = None,
    command: Annotated[CommandName | None, typer.Option("--command", help="Of this command.")] = None,
    outcome: Annotated[Outcome | None, typer.Option("--outcome", help="With this outcome.")] = None,
    reason: Annotated[ReasonName | None, typer.Option("--reason", help="Denied for this reason.")] = None,
    actor: Annotated[
        str | None,
        typer.Option("--actor", metavar="ACTOR", help="Asked by them, like cli:ana or api:0123456789ab:bot."),
    ] = None,
    key: OfKey = None,
    position_id: Annotated[
        str | None, typer.Option("--position", metavar="POSITION_ID", help="About this position.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", metavar="TIME", help="From then on, e.g. 2026-01-31T12:00:00Z.")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", metavar="TIME", help="Before then.")] = None,
    ascending: Annotated[bool, typer.Option("--ascending", help="Oldest first.")] = False,
    cursor: Cursor = None,
    limit: Limit = "100",
    everything: Everything = False,
    export: Annotated[
        ExportForm | None,
        typer.Option("--export", help="All of it from the cursor on, every field of the audit chain, as a stream."),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="Where the export goes; else here.")] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """List decisions, newest first.

    Every command leaves one, granted or denied, with what was asked and what decided; explain tells why.
    """
    from ledger_sizer.cli.ledger_session import ledger_at, note_unused

    filters: dict[str, Any] = {
        "symbol": symbol,
        "strategy": strategy,
        "command": command,
        "outcome": outcome,
        "reason": reason,
        "actor": actor,
        "key": key,
        "position_id": position_id,
        "since": options.timestamp(since, "since"),
        "until": options.timestamp(until, "until"),
        "ascending": ascending,
    }
    rows = options.whole_number(limit, "limit")
    if out is not None and export is None:
        errors.bad_input("--out names the file of an export; say --export csv or --export ndjson", "out")
    with ledger_at(database_url) as ledger:

        def page_at(cursor: str | None) -> "Page[Decision]":
            return ledger.history(portfolio, cursor=cursor, limit=rows, **filters)

        if export is not None:
            output.write_file(ledger.export(portfolio, export, cursor=cursor, **filters), out)
        elif as_json:
            from ledger_sizer.cli.json_forms import decision_form

            _write_json_pages(page_at, cursor, everything, decision_form)
        else:
            _write_table_pages(page_at, cursor, everything, _DECISION_COLUMNS, _decision_row, "no decisions")
        note_unused(ledger, portfolio)
    return 0


_DECISION_COLUMNS = [
    Column("seq"),
    Column("decided at", priority=6),
    Column("command"),
    Column("outcome"),
    Column("reason", priority=7),
    Column("position"),
    Column("budget USD", usd=True, priority=8),
    Column("quantity", priority=5),
    Column("bound by", priority=4),
    Column("exposure USD", usd=True, priority=3),
    Column("actor", priority=1),
    Column("key", priority=2),
]


def _decision_row(decision: "Decision") -> tuple[Cell, ...]:
    return (
        decision.seq, decision.decided_at, decision.command, decision.outcome, decision.reason, decision.position_id,
        decision.budget, decision.quantity, decision.binding, decision.exposure_after, decision.actor,
        decision.key,
    )  # fmt: skip


def _pages(page_at: "Callable[[str | None], Page[T]]", cursor: str | None, everything: bool) -> "Iterator[Page[T]]":
    """Yield one page, or all pages from the cursor on."""
    while True:
        page = page_at(cursor)
        yield page
        cursor = page.cursor
        if cursor is None or not everything:
            return


def _write_json_pages(
    page_at: "Callable[[str | None], Page[T]]", cursor: str | None, everything: bool, form: Callable[[T], Any]
) -> None:
    last_cursor: list[str | None] = [None]

    def items() -> Iterator[Any]:
        for page in _pages(page_at, cursor, everything):
            last_cursor[0] = page.cursor
            yield from map(form, page.items)

    output.write_json_list(items(), lambda: last_cursor[0])


def _write_table_pages(
    page_at: "Callable[[str | None], Page[T]]",
    cursor: str | None,
    everything: bool,
    columns: list[Column],
    row: Callable[[T], tuple[Cell, ...]],
    empty: str,
) -> None:
    pages = list(_pages(page_at, cursor, everything))
    output.table(columns, [row(item) for page in pages for item in page.items], empty=empty)
    if pages[-1].cursor is not None:
        output.note(f"more: --cursor {pages[-1].cursor}, or --all")


EXPLAIN_HELP = help_epilog("explain main-17", "explain 17 --portfolio main --json", exits=NEVER_DENIED)


def explain(
    reference: Annotated[
        str, typer.Argument(metavar="SEQ|POSITION_ID", help="A decision's seq, or a position (what made it).")
    ],
    portfolio: Annotated[
        str, typer.Option("--portfolio", "-p", metavar="NAME", help="Whose seq; a position names its own.")
    ] = "main",
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Explain why a decision came out as it did.

    Shows what was asked, every step of the sizing, each scope's headroom, what bound the answer, what to order, and
    what it did to its position.
    """
    from ledger_sizer.cli.ledger_session import ledger_at

    is_seq = reference.isascii() and reference.isdigit()
    wanted = options.whole_number(reference, "seq") if is_seq else reference
    with ledger_at(database_url) as ledger:
        found = ledger.explain(wanted, portfolio)
    if as_json:
        output.write_json(dict(found.data))
    else:
        first, *rest = found.text.splitlines()
        output.headline(first, found.decision.outcome)
        for line in rest:
            output.write(f"  {line}")
    return 0
