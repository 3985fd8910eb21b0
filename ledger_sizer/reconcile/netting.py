"""Markets in one-way mode: there an exchange shows the net of all that was bought and sold, whoever's it is."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from decimal import Decimal

from ledger_sizer.exchanges.snapshot import VenuePosition
from ledger_sizer.model.reconciliation import Market
from ledger_sizer.reconcile.ledger_side import LedgerSide, Place
from ledger_sizer.reconcile.throttle import throttled

ZERO = Decimal(0)


def net_sides(
    book: LedgerSide, place: Place, positions: Iterable[VenuePosition], shown: Mapping[Market, Decimal]
) -> LedgerSide:
    """The book with one side instead of two in the markets that the account shows the net of.

    shown: base units of the same positions, by market. What moved on one side of such a market has moved the net, and
    a live hold that may be changing the net does so too. A market shown on both sides is no net, whatever its mode
    (cross and isolated margin stand apart). Of a market that is not shown nobody can tell the mode: it stays as it is.
    """
    quantities, touched, settling = dict(book.open), set(book.touched), dict(book.settling)
    for position in throttled(positions):
        ours = Market(*place, position.symbol, position.side)
        theirs = ours.opposite
        if position.hedged or theirs in shown:
            continue
        net = quantities.pop(ours, ZERO) - quantities.pop(theirs, ZERO)
        quantities[ours if net >= 0 else theirs] = abs(net)
        if moved := settling.get(ours, ZERO) + settling.get(theirs, ZERO):
            settling[ours] = settling[theirs] = moved
        # Fills that add to the net are told apart in the comparison, as in any market.
        against = shown[ours] < net or net < 0
        low, high = net - book.in_flight.get(theirs, ZERO), net + book.in_flight.get(ours, ZERO)
        if touched & {ours, theirs} or (against and low <= shown[ours] <= high):
            touched |= {ours, theirs}
    return replace(book, open=quantities, touched=touched, settling=settling)
