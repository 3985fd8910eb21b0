"""Metrics of the net of each coin: read from the open positions at a scrape, and kept until something changes."""

from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily
from sqlalchemy import select

from ledger_sizer.model.errors import NotFound
from ledger_sizer.model.net import NetAsset
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.tables import DESK_ID, PortfolioRow
from ledger_sizer.views.net import NetView

NET_SERIES_MAX = 500
"""Most coins in one scrape, the largest naked amounts first, then the largest nets; `ledger_net_left_out` counts the
rest."""

OPEN_MAX = 20_000
"""Most open positions that a scrape adds up. Where there are more, no net is shown, and `ledger_net_left_out` says
that one is missing: the view (`ledger-sizer net`) has it."""


def net_families(view: NetView, portfolios: Sequence[str] | None) -> Iterator[GaugeMetricFamily]:
    """Yield the gauges of the nets. portfolios: the only ones to read; None for all."""
    labels = ["portfolio", "asset"]
    net = GaugeMetricFamily(
        "ledger_net_usd", "Bought less sold of a coin over all accounts, at the positions' price.", labels=labels
    )
    naked = GaugeMetricFamily(
        "ledger_naked_usd", "What of it is not hedged, in the ledger or as the last run saw it; 0 where it is hedged.",
        labels=labels,
    )  # fmt: skip
    left_out = GaugeMetricFamily("ledger_net_left_out", "Coins beyond the most that a scrape shows.")
    rows: list[tuple[str, NetAsset]] = []
    names = _names(view, portfolios)
    too_many = view.open_count(names) > OPEN_MAX
    for name in () if too_many else names:
        try:
            rows += [(name, asset) for asset in view.read(name).assets]
        except NotFound:
            continue
    rows.sort(key=lambda row: (row[1].naked_usd, abs(row[1].net_usd or 0)), reverse=True)
    for name, asset in rows[:NET_SERIES_MAX]:
        net.add_metric([name, asset.asset], float(asset.net_usd or 0))
        naked.add_metric([name, asset.asset], float(asset.naked_usd))
    left_out.add_metric([], 1 if too_many else max(len(rows) - NET_SERIES_MAX, 0))
    yield net
    yield naked
    yield left_out


def _names(view: NetView, portfolios: Sequence[str] | None) -> Sequence[str]:
    if portfolios is not None:
        return portfolios
    with read_transaction(view.engine) as connection:
        query = select(PortfolioRow.name).where(PortfolioRow.id != DESK_ID).order_by(PortfolioRow.name)
        return list(connection.execute(query).scalars())
