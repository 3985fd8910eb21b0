"""What a scope may be set to. The schema has a column of each name; rows, traces, SQL and `verify` follow from it."""

from typing import NamedTuple

from ledger_sizer.model.choices import Status


class ScopeSettings(NamedTuple):
    """The settings of a scope; the default is what an unused scope has. Only commands about the scope change them.

    cap_e8: 1e-8 USD, None without a cap. frozen: reconciliation found that the scope differs from the exchange.
    fresh_until_us: from then on it is not known to agree with the exchange; None where that is not enforced.
    guarantee_e8: what requests outside the scope must leave for it, 1e-8 USD; None without one. max_position_e8: the
    most that one position of the scope may be, 1e-8 USD, in place of the global maximum; None without one. share_e8:
    the fraction of the equity that the cap follows, 1e-8; None where it follows none. frozen_note: why it is frozen.

    Of an account (`account=bybit/main`) only. since_seq: the decision since which the ledger knows it; None where it
    does not. free_e8: its free balance as reconciliation last saw it, 1e-8 USD; None where nobody saw it. margin_e8:
    the fraction of a contract's value that it needs, 1e-8. promised_e8: what grants and fills used of the free balance
    that it does not show yet, 1e-8 USD; the only setting that decisions about positions change.
    """

    cap_e8: int | None = None
    status: Status = "active"
    frozen: bool = False
    fresh_until_us: int | None = None
    guarantee_e8: int | None = None
    max_position_e8: int | None = None
    share_e8: int | None = None
    frozen_note: str | None = None
    since_seq: int | None = None
    free_e8: int | None = None
    margin_e8: int | None = None
    promised_e8: int | None = None


NO_SETTINGS = ScopeSettings()

LATER: tuple[str, ...] = ScopeSettings._fields[4:]
"""Settings that older versions do not know. A trace names those that differ from the default."""
