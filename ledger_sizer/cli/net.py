"""`ledger-sizer net`: what a portfolio has of each coin over all accounts."""

from typing import TYPE_CHECKING

from ledger_sizer.cli import output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import DatabaseUrl, Json, PortfolioOrDesk
from ledger_sizer.cli.output import Cell, Column

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ledger_sizer.model.net import NetAsset

NET_HELP = help_epilog("net", "net --portfolio main --json", "net -p '*'", exits=NEVER_DENIED)


def net(portfolio: PortfolioOrDesk = "main", as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Show the net of each coin over all accounts: what is bought less what is sold.

    One row for each coin, the naked ones first, then one for each account where it is. `shown` is the net that the last
    reconciliation saw there. `naked USD` is what is not hedged, in the ledger or as that saw it. `external` is what
    only the exchange showed. The portfolio * is the desk.
    """
    from ledger_sizer.cli.ledger_session import ledger_at, note_unused

    with ledger_at(database_url) as ledger:
        found = ledger.net(portfolio)
        note_unused(ledger, portfolio)
    if as_json:
        from ledger_sizer.wire.net import net_to_json

        output.write_json(net_to_json(found))
        return 0
    output.table(
        [
            Column("coin"),
            Column("at", priority=5),
            Column("bought", priority=4),
            Column("sold", priority=4),
            Column("net"),
            Column("shown", priority=6),
            Column("net USD", usd=True),
            Column("exchange USD", usd=True, priority=2),
            Column("naked USD", usd=True, alert=True),
            Column("naked since", priority=6),
            Column("external", priority=3),
            Column("without legs", priority=1),
        ],
        [row for asset in found.assets for row in _rows(asset)],
        empty="no open positions",
    )
    if found.run_at is None:
        output.write("no reconciliation has looked at these accounts: what the exchanges show is not known")
    return 0


def _rows(asset: "NetAsset") -> "Iterator[tuple[Cell, ...]]":
    """Yield the row of a coin, and one for each of its accounts where it has several."""
    places = asset.accounts
    only = _place(places[0].venue, places[0].account) if len(places) == 1 else None
    yield (
        asset.asset or "(no symbol)", only, asset.bought, asset.sold, asset.net, asset.shown, asset.net_usd,
        asset.exchange_usd, asset.naked_usd or None, asset.naked_since, asset.external or None,
        asset.without_legs or None,
    )  # fmt: skip
    for one in places if len(places) > 1 else ():
        yield (
            None, _place(one.venue, one.account), one.bought, one.sold, one.net, one.shown, None, None, None, None,
            one.external or None, None,
        )  # fmt: skip


def _place(venue: str, account: str) -> str:
    return f"{venue}/{account}" if account else venue or "?"
