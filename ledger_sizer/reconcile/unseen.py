"""Says what snapshots did not see, and which of their differences need a second look at the exchange's markets."""

from collections.abc import Callable, Iterable, Sequence

from ledger_sizer.exchanges.snapshot import Snapshot
from ledger_sizer.model.reconciliation import Drift, Finding, Market
from ledger_sizer.reconcile.ledger_side import LedgerSide
from ledger_sizer.views.attribution import AccountKey


def unseen_markets(ledger_side: LedgerSide, snapshots: Sequence[Snapshot], live: Iterable[Drift]) -> set[Market]:
    """Return the derivative markets of the ledger, and of known drifts, that an account's snapshot does not tell of.

    They are not judged: what was not fetched is unknown, never flat.
    """
    by_account = {(one.venue, one.account): one for one in snapshots}
    known = {market for market in (*ledger_side.open, *(drift.market for drift in live)) if market.is_swap}
    return {
        market for market in known
        if (snapshot := by_account.get((market.venue, market.account))) and not snapshot.covers(market.subject)
    }  # fmt: skip


def failed_families(snapshots: Iterable[Snapshot]) -> list[Finding]:
    """Tell of families of positions that were asked for in vain, where the others were fetched."""
    return [
        Finding(
            Market(one.venue, one.account, "account", ""), "fetch_failed", None, None,
            "; ".join([f"{' and '.join(one.failed)} positions not fetched", *one.problems])[:500],
        )
        for one in snapshots if one.failed and one.positions is not None and one.balances is not None
    ]  # fmt: skip


def accounts_with_new_differences(findings: Iterable[Finding], live: Iterable[Drift]) -> set[AccountKey]:
    """Return the accounts with a difference in a derivative market that no run has seen.

    Before it is judged, their markets are loaded again: a contract size may have changed since the last load.
    """
    known = {(one.market, one.venue_quantity) for one in live}
    return {
        (found.market.venue, found.market.account)
        for found in findings
        if found.market.is_swap and found.venue_quantity and (found.market, found.venue_quantity) not in known
    }


def snapshot_with_new_rules(account: object, now_us: Callable[[], int]) -> Snapshot | None:
    """Fetch again with new market rules; None from an account that has them already, or has none."""
    fetch = getattr(account, "snapshot_with_new_rules", None)
    return None if fetch is None else fetch(now_us)
