"""Tells before trust ends, when it has ended, and when it is back: in the log, in the audit chain, at the webhook.

Trust ends by time, so a reconciliation that died says nothing of it: this job looks at the ledger itself. It watches
every portfolio and every account whose trust ends. What was told is kept as a remark in the portfolio's chain,
whose key names the scope and the time at which its trust ends. So each step is told once, by whichever replica, also
across restarts. What several scopes have in common at one look is one message.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, Engine, select

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.caller import SYSTEM, calling_as
from ledger_sizer.model.commands import Remark
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, account_of_scope
from ledger_sizer.model.times import from_us, time_text
from ledger_sizer.reconcile.outbox import enqueue_event
from ledger_sizer.service.reconciliation_metrics import trust_that_ends
from ledger_sizer.storage.clock import read_database_now_us
from ledger_sizer.storage.database import read_transaction, write_transaction
from ledger_sizer.storage.tables import ReconciliationRow
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

ENDING, ENDED, BACK = "trust_ending", "trust_ended", "trust_back"
LOOK_SECONDS_MAX = 15
"""Longest time between two looks."""

_LISTED_MAX = 100
_LINES_MAX = 20
_REMARKS_MAX = 1000
"""Newest remarks of the ledger itself among which the last one about a scope is looked for."""

_HEADS = {
    ENDING: "Trust ends soon: unless a run is good before, new reservations will be denied.",
    ENDED: "Trust has ended: new reservations are denied until a run is good again.",
    BACK: "Trust is back.",
}
_TO_DO = (
    "Do: ledger-sizer reconcile, and look at the problems that it shows. If no run began lately, look whether the"
    " service runs and who has its jobs. Confirm, release and extend work all the same."
)


class Trust(NamedTuple):
    """The trust in one scope: of a portfolio (`portfolio`) or of one account (`account=bybit/main`).

    until_us: when it ends; None where that is not enforced any more. frozen: whether a drift denies reservations there
    as well.
    """

    portfolio: str
    scope: str
    until_us: int | None
    frozen: bool


class Step(NamedTuple):
    """A step to tell. until_us: the end of trust that names its episode."""

    trust: Trust
    event: str
    until_us: int

    @property
    def key(self) -> str:
        """Key of its remark."""
        return f"trust:{self.event}:{self.trust.scope}:{self.until_us}"


class TrustWatch:
    """The job that tells of it. engine: that may write, for the webhook's outbox. now_us: replaced by tests."""

    def __init__(self, ledger: Ledger, engine: Engine, *, now_us: Callable[[Connection], int] | None = None) -> None:
        self._ledger = ledger
        self._engine = engine
        self._now_us = now_us or read_database_now_us
        settings = ledger.settings
        self._warns_at_us = settings.reconcile.timing.warns_at * 1_000_000
        self._webhook = settings.reconcile.webhook_url is not None
        self._told: dict[str, dict[str, tuple[str, int]]] = {}
        self._looked_us = 0

    @property
    def look_seconds(self) -> int:
        """Time between two looks."""
        return max(min(self._warns_at_us // 4_000_000, LOOK_SECONDS_MAX), 1) if self._warns_at_us else LOOK_SECONDS_MAX

    def __call__(self) -> str | None:
        """Tell of each step that was not told of. Returns `told` if there were any.

        Raises `LedgerError`: what was not recorded by then is told with the next look.
        """
        with read_transaction(self._engine) as connection:
            now_us = self._now_us(connection)
            watched = _read_trust(connection)
        if not 0 <= now_us - self._looked_us < 2 * self.look_seconds * 1_000_000:
            self._told.clear()  # another replica may have looked in between
        self._looked_us = now_us
        steps = self._steps(watched, now_us)
        for event in (ENDED, ENDING, BACK):
            of_event = [step for step in steps if step.event == event]
            if of_event:
                self._tell(event, of_event, now_us)
        return "told" if steps else None

    def _steps(self, watched: Sequence[Trust], now_us: int) -> list[Step]:
        steps = []
        by_portfolio: dict[str, list[Trust]] = {name: [] for name in self._told}
        for one in watched:
            by_portfolio.setdefault(one.portfolio, []).append(one)
        for portfolio, here in sorted(by_portfolio.items()):
            found = self._steps_of(portfolio, here, now_us)
            if found:  # rarely; another replica may have told them meanwhile, so what is remembered is read again
                self._told.pop(portfolio, None)
                found = self._steps_of(portfolio, here, now_us)
            steps += found
        return steps

    def _steps_of(self, portfolio: str, watched: Sequence[Trust], now_us: int) -> list[Step]:
        steps = []
        told = self._told_of(portfolio)
        here = {one.scope: one for one in watched}
        here |= {scope: Trust(portfolio, scope, None, False) for scope in told.keys() - here.keys()}
        for scope in sorted(here, key=lambda scope: (scope != PORTFOLIO_SCOPE, scope)):
            before, told_until_us = told.get(scope, (BACK, 0))
            event = self._event(here[scope], before, now_us)
            if event is not None:
                until_us = told_until_us if event == BACK else here[scope].until_us
                steps.append(Step(here[scope], event, until_us or 0))
        return steps

    def _event(self, trust: Trust, before: str, now_us: int) -> str | None:
        """Return what is to be told now; None for nothing. before: the last that was told."""
        left_us = None if trust.until_us is None else trust.until_us - now_us
        if left_us is not None and left_us <= 0:
            return None if before == ENDED else ENDED
        if before == ENDED or (before == ENDING and (left_us is None or left_us > self._warns_at_us)):
            return BACK
        ending = left_us is not None and left_us <= self._warns_at_us
        return ENDING if ending and before == BACK else None

    def _told_of(self, portfolio: str) -> dict[str, tuple[str, int]]:
        """Return what was told last about each scope, with the end of trust that it was about, from the chain."""
        if portfolio not in self._told:
            told: dict[str, tuple[str, int]] = {}
            remarks = self._ledger.history(portfolio, command="remark", actor=SYSTEM.actor, limit=_REMARKS_MAX)
            for remark in remarks:
                name, _, rest = remark.record.key.partition(":")
                if name == "trust":
                    event, _, scope_and_until = rest.partition(":")
                    scope, _, until = scope_and_until.rpartition(":")
                    told.setdefault(scope, (event, int(until)))
            self._told[portfolio] = told
        return self._told[portfolio]

    def _tell(self, event: str, steps: Sequence[Step], now_us: int) -> None:
        level = log.info if event == BACK else log.warning if event == ENDING else log.error
        level(
            f"trust.{event.removeprefix('trust_')}",
            scopes=[f"{one.trust.portfolio} {one.trust.scope}" for one in steps],
        )
        # First the outbox: a crash in between tells the webhook twice, under one name, and never not at all.
        if self._webhook:
            digest = hashlib.sha256("\n".join(f"{one.trust.portfolio} {one.key}" for one in steps).encode()).hexdigest()
            body = self._body(event, steps, now_us)
            with write_transaction(self._engine) as connection:
                enqueue_event(connection, f"{event}-{digest[:24]}", json.dumps(body))
        with calling_as(SYSTEM):
            results = self._ledger.submit([_remark(one) for one in steps])
        for step, result in zip(steps, results, strict=True):
            if isinstance(result, LedgerError):
                raise result
            self._told[step.trust.portfolio][step.trust.scope] = (event, step.until_us)

    def _body(self, event: str, steps: Sequence[Step], now_us: int) -> dict[str, object]:
        listed = steps[:_LISTED_MAX]
        whole = {one.trust.portfolio for one in steps if one.trust.scope == PORTFOLIO_SCOPE}
        said = [one for one in steps if one.trust.scope == PORTFOLIO_SCOPE or one.trust.portfolio not in whole]
        lines = [_HEADS[event], *(f"- {self._line(one, now_us)}" for one in said[:_LINES_MAX])]
        if len(said) > _LINES_MAX:
            lines.append(f"- and {len(said) - _LINES_MAX} more")
        if event != BACK:
            lines.append(_TO_DO)
        return {
            "event": event, "text": "\n".join(lines), "count": len(steps), "left_out": len(steps) - len(listed),
            "portfolios": sorted({one.trust.portfolio for one in steps}),
            "scopes": [_scope_json(one.trust, now_us) for one in listed],
        }  # fmt: skip

    def _line(self, step: Step, now_us: int) -> str:
        trust = step.trust
        account = "" if trust.scope == PORTFOLIO_SCOPE else "/".join(account_of_scope(trust.scope))
        where = f"{trust.portfolio}: {f'reservations with a leg at {account}' if account else 'all new reservations'}"
        if trust.until_us is None:
            return f"{where}: an end of trust is not enforced there any more"
        until = time_text(from_us(trust.until_us))
        if step.event == BACK:
            return f"{where} are possible again until {until}" + (", but a drift still freezes" * trust.frozen)
        left = (trust.until_us - now_us) // 1_000_000
        since = f"from {until} on, in {left} s" if step.event == ENDING else f"since {until}"
        return f"{where} {since}. {self._last_run(trust.portfolio)}"

    def _last_run(self, portfolio: str) -> str:
        row = ReconciliationRow
        query = select(row.id, row.outcome, row.started_us, row.fetched).where(row.portfolio == portfolio)
        with read_transaction(self._engine) as connection:
            found = connection.execute(query.order_by(row.id.desc()).limit(1)).one_or_none()
        if found is None:
            return "No run was ever recorded."
        number, outcome, started_us, fetched = found
        problems = [
            f"{one['venue']}/{one['account']} {problem}" for one in json.loads(fetched) for problem in one["problems"]
        ]
        why = f": {'; '.join(problems[:3])[:300]}" if problems else ""
        return f"The last run, {number}, began at {time_text(from_us(started_us))} and was {outcome}{why}."


def _remark(step: Step) -> Remark:
    note = {
        ENDING: "no good run lately: new reservations will be denied soon",
        ENDED: "no good run: new reservations are denied",
        BACK: "new reservations are not denied for that any more",
    }[step.event]
    return Remark(
        key=step.key, portfolio=step.trust.portfolio, about=step.trust.scope, event=step.event, note=note,
        details={"trusted_until": _text(step.trust.until_us) or "without end"},
    )  # fmt: skip


def _scope_json(trust: Trust, now_us: int) -> dict[str, object]:
    return {
        "portfolio": trust.portfolio,
        "scope": trust.scope,
        "trusted_until": _text(trust.until_us),
        "seconds_left": None if trust.until_us is None else (trust.until_us - now_us) // 1_000_000,
    }


def _text(moment_us: int | None) -> str | None:
    return None if moment_us is None else time_text(from_us(moment_us))


def _read_trust(connection: Connection) -> list[Trust]:
    found = connection.execute(trust_that_ends()).all()
    return [Trust(name, scope, until_us, bool(frozen)) for name, scope, until_us, frozen in found]
