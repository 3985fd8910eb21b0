"""Sums up what a run saw of each exchange account: whether it was read whole, what is free in it, what it is worth."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.model.asset_policies import AssetPolicies
from ledger_sizer.model.domain import Position
from ledger_sizer.model.tags import account_scope
from ledger_sizer.model.units import exact_arithmetic, floor_to_step, usd
from ledger_sizer.reconcile.assets import free_usd
from ledger_sizer.reconcile.ledger_reads import Moves
from ledger_sizer.rules.accounts import accounts_of, unsettled_e8
from ledger_sizer.rules.scope_state import ScopeState

ZERO = Decimal(0)
_CENT_E8 = Decimal("0.00000001")


@dataclass(frozen=True, slots=True)
class AccountLook:
    """What a run saw of one account. USD.

    whole: every part was fetched, and lately. free: dollars that are free; None where they bound nothing, or nobody
    knows. settled: what was promised of the account and shows in `free` by now; below zero where it has to show more
    than was promised. equity: dollars, coins at their prices, and the profit and loss of open positions; None if
    unknown. margin_fraction: of a contract's value.
    """

    venue: str
    account: str
    whole: bool
    free: Decimal | None = None
    settled: Decimal = ZERO
    equity: Decimal | None = None
    margin_fraction: Decimal = Decimal(1)

    @property
    def scope(self) -> str:
        """The name of the account's scope."""
        return account_scope(self.venue, self.account)


def unsettled_by_scope(
    positions: Iterable[Position], scopes: Sequence[ScopeState], moves: Moves, settled_us: int
) -> dict[str, int]:
    """Return what the accounts' balances need not show yet, 1e-8 USD by scope.

    scopes: of the accounts. settled_us: what moved later may not be visible.
    """
    known = accounts_of({scope.name: scope for scope in scopes}, [scope.name for scope in scopes])
    found: dict[str, int] = {}
    for position in positions:
        recent = _recent_part(position, moves, settled_us)
        if position.pending or (recent and position.state == "open"):
            for name, amount_e8 in unsettled_e8(position, known, recent).items():
                found[name] = found.get(name, 0) + amount_e8
    return found


def _recent_part(position: Position, moves: Moves, settled_us: int) -> Decimal:
    """Return which part of a position was filled since a time; all of it where that is not known."""
    if moves.last_of(position)[1] <= settled_us:
        return ZERO
    if position.number not in moves.asked or not position.quantity:
        return Decimal(1)
    with exact_arithmetic():
        return min(moves.filled.get(position.number, ZERO) / position.quantity, Decimal(1))


def look_of(
    snapshot: Snapshot, scope: ScopeState | None, unsettled: int, *, stale_us: int, policies: AssetPolicies,
    prices: Mapping[str, Decimal | None], margin_fraction: Decimal, binds: bool,
) -> AccountLook:  # fmt: skip
    """Return what a snapshot says of its account.

    scope: of the account, as of the same decision as `unsettled` (1e-8 USD); None where the ledger does not know it
    yet. policies: whose money each asset is. prices: USD by coin. binds: whether its free balance bounds reservations.
    """
    whole = snapshot.whole and snapshot.begun_us >= stale_us
    if not whole:
        return AccountLook(snapshot.venue, snapshot.account, False, margin_fraction=margin_fraction)
    balances = snapshot.balances or ()
    with exact_arithmetic():
        free = free_usd(snapshot, policies)
        worth = snapshot.unrealized_usd
        for one in balances:
            names = (one.asset, one.earns or one.asset)
            if any(policies.is_dollar(snapshot.venue, snapshot.account, name) for name in names):
                worth += one.total
            elif price := snapshot.prices.get(one.coin) or prices.get(one.coin):
                worth += one.coins * price
        promised_e8 = 0 if scope is None else scope.settings.promised_e8 or 0
        return AccountLook(
            snapshot.venue, snapshot.account, True,
            free=floor_to_step(free, _CENT_E8) if binds and scope is not None else None,
            settled=usd(promised_e8 - unsettled),
            equity=floor_to_step(max(worth, ZERO), _CENT_E8), margin_fraction=margin_fraction,
        )  # fmt: skip
