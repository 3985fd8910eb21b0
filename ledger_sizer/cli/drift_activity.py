"""`ledger-sizer drifts activity`: asks the exchange what happened in a drift's market, and says what that explains."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import options, output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import DatabaseUrl, Json
from ledger_sizer.cli.output import Column

if TYPE_CHECKING:
    from ledger_sizer.model.account_activity import DriftActivity

ACTIVITY_HELP = help_epilog("drifts activity 1", exits=NEVER_DENIED)


def activity(
    drift: Annotated[str, typer.Argument(metavar="DRIFT", help="Its number, as `drifts list` shows it.")],
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Ask the exchange what explains a drift: fills, liquidations, transfers, funding since the last good run.

    Reads a week at most, and what the account's key may read. Nothing is written.
    """
    from ledger_sizer.wire.activity import drift_activity_to_json

    found = fetch_activity(options.whole_number(drift, "drift"), database_url)
    if as_json:
        output.write_json(drift_activity_to_json(found))
        return 0
    show_activity(found)
    return 0


def fetch_activity(drift_id: int, database_url: str | None) -> "DriftActivity":
    """Ask the accounts of the settings what explains a drift. Raises `InvalidRequest` where none can be asked."""
    from ledger_sizer.cli.ledger_session import ledger_engine_at, load_settings
    from ledger_sizer.exchanges.accounts import open_accounts
    from ledger_sizer.reconcile.drift_activity import drift_activity
    from ledger_sizer.storage.clock import ClockGuard, read_clock

    settings = load_settings()
    guard = ClockGuard(settings.ledger.clock_jump_seconds)
    with ledger_engine_at(database_url) as engine, ExitStack() as stack:
        accounts = open_accounts(settings.exchange)
        for account in accounts:
            stack.callback(account.close)
        return drift_activity(
            engine, accounts, drift_id, lambda: read_clock(engine, guard), settings.reconcile.quote_assets
        )


def show_activity(found: "DriftActivity") -> None:
    """Write what explains a drift: the explanation, what was not told, and the events."""
    output.headline(found.text, "ok" if found.unexplained == 0 else "denied")
    output.details([
        ("difference", found.difference), ("unexplained", found.unexplained), ("told by bots", found.told or None),
        ("since", found.since), ("until", found.until), *(("not told", one) for one in found.problems),
    ])  # fmt: skip
    titles = ("at", "kind", "side", "subject")
    columns = [*map(Column, titles), Column("quantity", right=True), Column("price", right=True), Column("detail")]
    rows = [
        (one.happened_at, one.kind, one.side, one.subject, one.quantity, one.price, _detail(one.detail, one.elsewhere))
        for one in found.events
    ]
    output.table(columns, rows, empty="no events")


def _detail(detail: str, elsewhere: bool) -> str | None:
    return ", ".join(filter(None, [detail, "not compared here" if elsewhere else ""])) or None
