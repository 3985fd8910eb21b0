"""Nets long against short in one-way mode, where an exchange shows only the net of all buys and sells."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from ledger_sizer.exchanges.snapshot import VenuePosition
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.reconcile.ledger_side import LedgerSide
from ledger_sizer.reconcile.throttle import throttled
from ledger_sizer.views.attribution import AccountKey

ZERO = Decimal(0)


def net_sides(
    ledger_side: LedgerSide,
    account_key: AccountKey,
    positions: Iterable[VenuePosition],
    shown: Mapping[Market, Decimal],
) -> LedgerSide:
    """Return `ledger_side` with one net side instead of two in the markets where this account shows a net position.

    shown: base units of the same positions, by market. A change on one side of such a market changes the net, and so
    does the fill of a live hold. A market shown on both sides is no net, whatever its mode: cross and isolated margin
    are listed separately. The mode of a market that is not shown is unknown, so it stays as it is.
    """
    quantities, moving, settling = dict(ledger_side.open), set(ledger_side.moving), dict(ledger_side.settling)
    for position in throttled(positions):
        market = Market(*account_key, position.symbol, position.side)
        opposite = market.opposite
        if position.hedged or opposite in shown:
            continue
        net = quantities.pop(market, ZERO) - quantities.pop(opposite, ZERO)
        quantities[market if net >= 0 else opposite] = abs(net)
        if moved := settling.get(market, ZERO) + settling.get(opposite, ZERO):
            settling[market] = settling[opposite] = moved
        # The comparison handles fills that increase the net, as in any market. This handles fills that reduce it.
        reduced = shown[market] < net or net < 0
        low, high = net - ledger_side.in_flight.get(opposite, ZERO), net + ledger_side.in_flight.get(market, ZERO)
        if moving & {market, opposite} or (reduced and low <= shown[market] <= high):
            moving |= {market, opposite}
    return replace(ledger_side, open=quantities, moving=moving, settling=settling)
