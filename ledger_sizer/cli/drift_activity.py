"""`ledger-sizer drifts show N --activity`: asks the exchange what happened there, and says what that explains."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from ledger_sizer.cli import output
from ledger_sizer.cli.output import Column

if TYPE_CHECKING:
    from ledger_sizer.model.account_activity import DriftActivity
    from ledger_sizer.model.errors import InvalidRequest


def fetch_activity(drift_id: int, database_url: str | None) -> "DriftActivity | InvalidRequest":
    """Ask the accounts of the settings what explains a drift. Returns why none can be asked, where that is so."""
    from ledger_sizer.cli.ledger_session import ledger_engine_at, load_settings
    from ledger_sizer.exchanges.accounts import open_accounts
    from ledger_sizer.model.errors import InvalidRequest
    from ledger_sizer.reconcile.drift_activity import drift_activity
    from ledger_sizer.storage.clock import ClockGuard, read_clock

    settings = load_settings()
    guard = ClockGuard(settings.ledger.clock_jump_seconds)
    with ledger_engine_at(database_url) as engine, ExitStack() as stack:
        accounts = open_accounts(settings.exchange)
        for account in accounts:
            stack.callback(account.close)
        try:
            return drift_activity(
                engine, accounts, drift_id, lambda: read_clock(engine, guard), settings.reconcile.quote_assets
            )
        except InvalidRequest as refused:
            return refused


def activity_to_json(found: "DriftActivity | InvalidRequest") -> dict[str, object]:
    """Return what explains a drift as JSON; of a drift that no account can be asked about, why."""
    from ledger_sizer.model.errors import InvalidRequest
    from ledger_sizer.wire.activity import drift_activity_to_json

    return {"text": str(found)} if isinstance(found, InvalidRequest) else drift_activity_to_json(found)


def show_activity(found: "DriftActivity | InvalidRequest") -> None:
    """Write what explains a drift: the explanation, what was not told, and the events."""
    from ledger_sizer.model.errors import InvalidRequest

    output.write("\nat the exchange:")
    if isinstance(found, InvalidRequest):
        output.write(f"  {found}")
        return
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
