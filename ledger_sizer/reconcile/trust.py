"""Tells the ledger what runs saw of the exchange accounts: until when they are trusted, what is free, what caps follow.

Only by commands, so that the audit chain has all of it. Each key names its run, so that a repetition changes nothing.
"""

import secrets
from collections.abc import Iterable, Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import Engine, or_, select

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.arguments import NOT_GIVEN
from ledger_sizer.model.commands import AccountSeen, AnyCommand, EquitySeen, Reconciled
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.scope_settings import NO_SETTINGS, ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, account_scope
from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.reconcile.account_looks import AccountLook
from ledger_sizer.storage.database import read_transaction
from ledger_sizer.storage.leases import LeaseLost
from ledger_sizer.storage.tables import PortfolioRow, ScopeRow
from ledger_sizer.storage.write_store import scope_from_row
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

EQUITY_CHANGE_MIN = Decimal("0.01")
"""A cap that follows the equity changes by no less than this part of it: each change is a decision."""


class Trust:
    """The trust of portfolios and of their accounts in one ledger."""

    def __init__(self, ledger: Ledger, engine: Engine, settings: ReconcileSettings) -> None:
        self._ledger = ledger
        self._engine = engine
        self._settings = settings
        self._equity: dict[tuple[str, str], Decimal] = {}  # by portfolio and account's scope, as last seen

    def begin(self, portfolio: str, accounts: Sequence[tuple[str, str]], now_us: int) -> None:
        """At the start of the service: let a portfolio that was never reconciled grant for one `stale_after_seconds`.

        Where that time has ended, a restart does not renew it: only a good run does.
        """
        if not self.expires(portfolio):
            self._send(Reconciled(
                key=f"reconcile:start:{secrets.token_hex(8)}", portfolio=portfolio, note="start",
                fresh_until=self._until(now_us),
            ))  # fmt: skip
        self.declare(portfolio, accounts, now_us)

    def declare(self, portfolio: str, accounts: Sequence[tuple[str, str]], now_us: int) -> None:
        """Let the ledger know the accounts of a portfolio before they are read, so that it adds up what is promised.

        An account is trusted for one `stale_after_seconds`, like a portfolio at the start. Where runs are scheduled,
        the ledger forgets accounts that the settings do not have any more.
        """
        scopes = self._scopes(portfolio)
        if not scopes:
            return  # nobody used the portfolio yet
        known = {name for name, settings in scopes.items() if settings.since_seq is not None}
        until = self._until(now_us) if self._settings.enabled or self.expires(portfolio) else None
        names = {account_scope(*account) for account in accounts}
        for name in sorted(names - known):
            key = f"reconcile:{name}:known:{now_us}"
            self._send(AccountSeen(key=key, portfolio=portfolio, scope=name, fresh_until=until, note="start"))
        for name in sorted(known - names if self._settings.enabled else ()):
            key = f"reconcile:{name}:gone:{now_us}"
            self._send(AccountSeen(key=key, portfolio=portfolio, scope=name, gone=True, note="not in the settings"))

    def expires(self, portfolio: str) -> bool:
        """Whether grants in the portfolio require a recent reconciliation."""
        return self._scopes(portfolio).get(PORTFOLIO_SCOPE, NO_SETTINGS).fresh_until_us is not None

    def renew(self, portfolio: str, looks: Iterable[AccountLook], run_id: int, since_us: int) -> None:
        """Renew the trust in the accounts that a run read whole, and in the portfolio if there is one.

        Without a schedule, a run by hand must not start an expiring trust that nothing would renew.
        """
        scopes = self._scopes(portfolio)
        renews = self._settings.enabled or scopes.get(PORTFOLIO_SCOPE, NO_SETTINGS).fresh_until_us is not None
        until = self._until(since_us)
        whole = [look for look in looks if look.whole]
        for look in whole if scopes else ():
            self._send(AccountSeen(
                key=f"reconcile:{look.scope}:{run_id}", portfolio=portfolio, scope=look.scope, free=look.free,
                fresh_until=until if renews else NOT_GIVEN, settled=look.settled or None,
                margin_fraction=look.margin_fraction, note=f"run {run_id}",
            ))  # fmt: skip
        if whole and renews:
            self._send(Reconciled(
                key=f"reconcile:run:{run_id}", portfolio=portfolio, fresh_until=until, note=f"run {run_id}"
            ))  # fmt: skip

    def follow_equity(self, portfolio: str, looks: Sequence[AccountLook], run_id: int, *, good: bool) -> None:
        """Let the caps follow the equity that do: down at once, up on good runs, and not by less than 1 %.

        An account that was not read counts what it had when it was read last; without that, nothing changes.
        """
        for look in looks:
            if look.equity is not None:
                self._equity[portfolio, look.scope] = look.equity
        for scope, settings in self._scopes(portfolio).items():
            if settings.share_e8 is None:
                continue
            known = [self._equity.get((portfolio, look.scope)) for look in looks if _counts_for(scope, look)]
            equity = sum([one for one in known if one is not None], Decimal(0))
            if not known or None in known or not _changes_enough(settings, equity, good=good):
                continue
            key = f"reconcile:equity:{run_id}:{scope}"
            self._send(EquitySeen(key=key, portfolio=portfolio, scope=scope, equity=equity, note=f"run {run_id}"))

    def _scopes(self, portfolio: str) -> dict[str, ScopeSettings]:
        """Return the settings of the whole portfolio, of its accounts and of the scopes that follow the equity."""
        wanted = (ScopeRow.scope == PORTFOLIO_SCOPE, ScopeRow.since_seq.is_not(None), ScopeRow.share_e8.is_not(None))
        query = select(ScopeRow.__table__).join(PortfolioRow, PortfolioRow.id == ScopeRow.portfolio_id)
        with read_transaction(self._engine) as connection:
            rows = connection.execute(query.where(PortfolioRow.name == portfolio, or_(*wanted))).all()
        return {scope.name: scope.settings for scope in map(scope_from_row, rows)}

    def _until(self, since_us: int) -> Any:
        """Return the end of the trust of what was seen at a time; None if it has none."""
        seconds = self._settings.stale_after_seconds
        return None if seconds is None else from_us(since_us + seconds * 1_000_000)

    def _send(self, command: AnyCommand) -> None:
        try:
            self._ledger.run(command)
        except LeaseLost:
            raise
        except LedgerError as error:
            log.warning("reconcile.trust_failed", portfolio=command.portfolio, key=command.key, error=str(error))


def _changes_enough(settings: ScopeSettings, equity: Decimal, *, good: bool) -> bool:
    """Whether a cap has to follow this equity, USD: it falls on any run, and rises on good ones."""
    before_e8, share_e8 = settings.cap_e8 or 0, settings.share_e8 or 0
    with exact_arithmetic():
        change_e8 = equity * share_e8 - before_e8
        return bool(change_e8) and abs(change_e8) >= EQUITY_CHANGE_MIN * before_e8 and (change_e8 < 0 or good)


def _counts_for(scope: str, look: AccountLook) -> bool:
    """Whether an account's equity is part of what a scope's cap follows: of a venue its accounts', else all."""
    dimension, _, value = scope.partition("=")
    return dimension != "venue" or value == look.venue
