"""What bounds a budget besides its sizing. A grant is decided by it, and `explain` says by it what could be granted."""

from collections.abc import Iterable
from decimal import Decimal

from ledger_sizer.model.units import floor_e8
from ledger_sizer.rules.state import ScopeState


def bounds(scopes: Iterable[ScopeState], available_balance: Decimal | None) -> list[tuple[str, int]]:
    """Return the name and the amount of each bound, 1e-8 USD. The least binds, and of equals the first.

    available_balance: USD, also beyond 64 bits. An amount is below zero where facts exceeded a cap, or of a debt.
    """
    found = [
        (scope.name, cap_e8 - scope.held_e8 - scope.open_e8)
        for scope in scopes
        if (cap_e8 := scope.settings.cap_e8) is not None
    ]
    if available_balance is not None:
        found.append(("available_balance", floor_e8(available_balance)))
    return found
