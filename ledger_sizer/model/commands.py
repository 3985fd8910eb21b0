"""The commands that a caller may send: one frozen type per verb, validated when built.

A command carries the caller's idempotency `key`: within a portfolio, one key has one effect. Bad input raises
`InvalidRequest` that names the field, so nothing malformed reaches the queue. `request_text` is the canonical form: it
is stored, hashed, and compared when a key is sent again.

Each class is the one declaration of its verb. The methods of the ledger and the clients, the HTTP call with its body,
the item of a batch, the OpenAPI document, the command line and both references come from it; `rules.decide` has its
rule.
"""

from collections.abc import Mapping, Set
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, get_args

from ledger_sizer.model.arguments import (
    ANY_DECIMAL,
    FLAG,
    LABEL,
    NOT_GIVEN,
    NOT_NEGATIVE,
    NOTE,
    POSITIVE,
    Argument,
    NotGiven,
    choice,
)
from ledger_sizer.model.choices import HaltMode
from ledger_sizer.model.command_base import (
    ACCOUNT_SCOPE,
    DECLARED,
    DESK_OR_PORTFOLIO,
    MOMENT,
    PortfolioCommand,
    PositionCommand,
    ScopeCommand,
    verb,
)
from ledger_sizer.model.details import DETAILS
from ledger_sizer.model.errors import InvalidRequest, WrongState
from ledger_sizer.model.position_commands import Adopt as Adopt
from ledger_sizer.model.position_commands import Confirm as Confirm
from ledger_sizer.model.position_commands import Extend as Extend
from ledger_sizer.model.position_commands import Fill as Fill
from ledger_sizer.model.position_commands import Release as Release
from ledger_sizer.model.position_commands import Reprice as Reprice
from ledger_sizer.model.position_commands import Reserve as Reserve
from ledger_sizer.model.position_commands import Retag as Retag
from ledger_sizer.model.rename_command import Rename as Rename
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, is_default_scope
from ledger_sizer.model.times import to_us
from ledger_sizer.model.units import E8, exact_arithmetic, usd_ceil_e8, usd_floor_e8


@verb(
    "set_cap", role="admin", call="PUT /v1/portfolios/{portfolio}/caps", creates=True,
    examples=(
        "caps set main 5000", "caps set main 2000 --scope venue=bybit", "caps set main 1000 --scope 'venue=*'",
        "caps set main --scope bot=a --guarantee 1500 --max-position 300",
        "caps set main --scope bot=a --guarantee none",
    ),
)  # fmt: skip
class SetCap(ScopeCommand):
    """Set the cap, the guarantee and the largest position of a portfolio or of one of its scopes.

    What is not given stays; null removes it. A cap below the present exposure is legal: the excess is overage, and
    nothing is granted until it is gone. A scope without a cap is only counted; the portfolio's own can be changed but
    not removed. The scope `venue=*` sets the default: the cap of each venue that has none of its own. A guarantee is
    kept free for its scope: a reservation outside of it cannot have what the scope does not use of its guarantee.
    Guarantees stand on one tag name, and their sum is at most the portfolio's cap.
    """

    cap: Annotated[
        Decimal | NotGiven | None, Argument(NOT_NEGATIVE, "Most exposure of the scope, USD.", metavar="CAP")
    ] = NOT_GIVEN
    guarantee: Annotated[
        Decimal | NotGiven | None, Argument(NOT_NEGATIVE, "What the scope can always have, USD.", metavar="USD")
    ] = NOT_GIVEN
    max_position_usd: Annotated[
        Decimal | NotGiven | None,
        Argument(
            POSITIVE, "Most one position of the scope may be, USD, instead of the settings' maximum.",
            flags=("--max-position",), metavar="USD",
        ),
    ] = NOT_GIVEN  # fmt: skip
    share_of_equity: Annotated[
        Decimal | NotGiven | None,
        Argument(
            POSITIVE, "Instead of a cap: the fraction of the accounts' equity that the cap follows, such as 0.8.",
            flags=("--share-of-equity",), metavar="SHARE",
        ),
    ] = NOT_GIVEN  # fmt: skip

    def _check_together(self) -> None:
        changes = self.changes()
        if not changes:
            raise InvalidRequest(
                "give cap, share_of_equity, guarantee or max_position_usd: what is not given stays, None removes it",
                field="cap",
            )
        if self.cap is not NOT_GIVEN and self.share_of_equity not in (None, NOT_GIVEN):
            raise InvalidRequest(
                f"a cap either is set or follows the equity; got cap {self.cap} and share_of_equity "
                f"{self.share_of_equity}: give one of them",
                field="share_of_equity",
            )
        if self.scope == PORTFOLIO_SCOPE and self.cap is None:
            raise InvalidRequest("the portfolio's cap can be changed but not removed", field="cap")
        if self.scope == PORTFOLIO_SCOPE and changes.get("guarantee_e8") is not None:
            raise InvalidRequest(
                f"a guarantee is of a tag's value, such as scope='bot=a', not of the whole portfolio; got "
                f"guarantee {self.guarantee} for the scope {self.scope!r}",
                field="guarantee",
            )
        for name in ("guarantee", "max_position_usd", "share_of_equity"):
            if is_default_scope(self.scope) and getattr(self, name) not in (None, NOT_GIVEN):
                raise InvalidRequest(
                    f"{self.scope} sets only the cap of the values that have none of their own; give {name} to each "
                    f"scope, such as {self.scope[:-1]}bybit",
                    field=name,
                )

    def request_text(self) -> str:
        """Return canonical JSON: what is removed is null, what is not given is absent.

        A cap that is removed alone is absent too, as it was when nothing else could be set.
        """
        removed = {"guarantee", "max_position_usd", "share_of_equity"}
        if any(getattr(self, name) is not NOT_GIVEN for name in removed):
            removed.add("cap")
        return _text_with_nulls(self, removed)

    def changes(self) -> dict[str, Any]:
        """The settings that are given, 1e-8 USD; None removes one."""
        found: dict[str, Any] = {}
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            if value is not NOT_GIVEN:
                found[setting] = None if value is None else usd_floor_e8(value, name)
        for name in ("max_position_usd", "share_of_equity"):
            if found.get(SETTINGS[name]) == 0:
                raise InvalidRequest(f"{name} must be at least 0.00000001", field=name)
        return found

    def settings_after(self, settings: ScopeSettings, seq: int) -> ScopeSettings:  # noqa: ARG002 - of its base
        """Return the settings of the scope after it: a cap that is given follows nothing any more.

        A cap that begins to follow the equity is 0 until somebody has seen it. One that follows it already changes with
        its share at once.
        """
        changes = self.changes()
        share_e8 = changes.get("share_e8")
        if "cap_e8" in changes:
            changes["share_e8"] = None
        elif share_e8 is not None:
            known_e8 = settings.cap_e8 if settings.share_e8 is not None else None
            changes["cap_e8"] = (known_e8 or 0) * share_e8 // (settings.share_e8 or 1)
        return settings._replace(**changes)


SETTINGS = {
    "cap": "cap_e8", "guarantee": "guarantee_e8", "max_position_usd": "max_position_e8", "share_of_equity": "share_e8"
}  # fmt: skip
"""Settings of a scope that `set_cap` changes, by argument."""


def _text_with_nulls(command: ScopeCommand, nullable: Set[str]) -> str:
    """Return a command's canonical JSON in which None of these arguments is null, and what is not given is absent."""
    text = f'{{"command":"{command.verb}"'
    for name, start, text_of in command.texts:
        value = getattr(command, name)
        if value is None and name in nullable:
            text += f"{start}null"
        elif value is not None and value is not NOT_GIVEN:
            text += start + text_of(value)
    return text + "}"


@verb(
    "halt", role="admin", call="POST /v1/portfolios/{portfolio}/halt",
    examples=(
        "halt --note 'venue maintenance'", "halt --scope venue=bybit --mode reducing", "halt -p '*' --note 'all stop'"
    ),
)  # fmt: skip
class Halt(ScopeCommand):
    """Stop new reservations in a portfolio or in one scope. The portfolio `*` is the desk: all portfolios.

    No reservation is granted after the answer. Confirming and releasing always work, so that what is on can be finished
    and closed. A halt of the desk counts also in portfolios that begin later, until `resume` of `*`.
    """

    portfolio: Annotated[str, DESK_OR_PORTFOLIO] = "main"
    mode: Annotated[
        HaltMode,
        Argument(choice(*get_args(HaltMode)), "halted: no new holds, none extended; reducing: holds may be extended."),
    ] = "halted"

    def changes(self) -> dict[str, Any]:
        """The status."""
        return {"status": self.mode}


@verb(
    "resume", role="admin", call="POST /v1/portfolios/{portfolio}/resume",
    examples=("resume", "resume --scope venue=bybit --note 'maintenance over'"),
)  # fmt: skip
class Resume(ScopeCommand):
    """Allow new reservations again after a halt.

    Resuming a portfolio does not lift a halt of the desk (`*`), and the other way round.
    """

    portfolio: Annotated[str, DESK_OR_PORTFOLIO] = "main"

    def changes(self) -> dict[str, Any]:
        """The status."""
        return {"status": "active"}


@verb(
    "freeze", role="admin", call="POST /v1/portfolios/{portfolio}/freeze",
    examples=("freeze --note 'orders look wrong'", "freeze --scope venue=bybit"),
)  # fmt: skip
class Freeze(ScopeCommand):
    """Deny new reservations as `unreconciled`, as the reconciliation does for a drift.

    It stays until it is thawed, by `thaw` or by the reconciliation when the last drift there is over. Holds may be
    extended. To stop trading for reasons of your own use `halt`, which `resume` ends.
    """

    def changes(self) -> dict[str, Any]:
        """Whether it is frozen, and why."""
        return {"frozen": True, "frozen_note": self.note}


@verb(
    "thaw", role="admin", call="POST /v1/portfolios/{portfolio}/thaw",
    examples=("thaw --note 'checked by hand'", "thaw --scope venue=bybit"),
)  # fmt: skip
class Thaw(ScopeCommand):
    """Allow new reservations again after a freeze.

    The drift that froze it stays as it is, and does not freeze again. A reconciliation that is too old is not cured
    by this: that takes a good run.
    """

    def changes(self) -> dict[str, Any]:
        """Whether it is frozen."""
        return {"frozen": False, "frozen_note": None}


@verb(
    "reconciled", role="admin", call="POST /v1/portfolios/{portfolio}/reconciled", creates=True,
    examples=("reconciled --fresh-until 2030-01-31T12:00:00Z --note 'compared by hand'",),
)  # fmt: skip
class Reconciled(ScopeCommand):
    """Say until when a scope is trusted to agree with the exchange.

    From then on every reservation in it is denied as `unreconciled`, until the next time this is said. It is a point in
    time, not an age, so that a reconciler that was paused and resumes late cannot make an old comparison count as
    fresh.
    """

    fresh_until: Annotated[
        datetime | None, Argument(MOMENT, "The end of the trust; none (null) trusts it without end, as at first.")
    ]

    def changes(self) -> dict[str, Any]:
        """The end of the trust, microseconds."""
        return {"fresh_until_us": None if self.fresh_until is None else to_us(self.fresh_until)}


@verb(
    "account_seen", role="admin", call="POST /v1/portfolios/{portfolio}/accounts",
    examples=(
        "account-seen --scope account=bybit/main --fresh-until 2030-01-31T12:00:00Z --free 1200.5",
        "account-seen --scope account=bybit/old --gone",
    ),
)  # fmt: skip
class AccountSeen(ScopeCommand):
    """Say what was seen of an exchange account of the portfolio, as the reconciliation does after each run.

    From then on reservations with a leg in it are denied as `unreconciled` when its trust is over, and bound by what
    is free in it, less what grants and fills use of that until it is seen again (`free_balance`).
    """

    scope: Annotated[str, Argument(ACCOUNT_SCOPE, "The account, like account=bybit/main.")]
    fresh_until: Annotated[
        datetime | NotGiven | None, Argument(MOMENT, "The end of the trust in it; none (null) trusts it without end.")
    ] = NOT_GIVEN
    free: Annotated[
        Decimal | NotGiven | None,
        Argument(NOT_NEGATIVE, "Dollars free in it; none (null): nobody knows, and they bound nothing.", metavar="USD"),
    ] = NOT_GIVEN
    settled: Annotated[
        Decimal | None,
        Argument(
            ANY_DECIMAL,
            "What was promised of it and shows in that balance, USD; below zero: what nobody promised.",
            metavar="USD",
        ),
    ] = None
    margin_fraction: Annotated[
        Decimal | NotGiven, Argument(NOT_NEGATIVE, "Fraction of a contract's value that it needs.", metavar="FRACTION")
    ] = NOT_GIVEN
    gone: Annotated[bool, Argument(FLAG, "It belongs to the portfolio no more.")] = False

    def request_text(self) -> str:
        """Return canonical JSON: what nobody knows or that has no end is null, what is not given is absent."""
        return _text_with_nulls(self, {"free", "fresh_until"})

    def settings_after(self, settings: ScopeSettings, seq: int) -> ScopeSettings:
        """Return the settings of the account after it."""
        if self.gone:
            return settings._replace(
                since_seq=None, free_e8=None, margin_e8=None, promised_e8=None, fresh_until_us=None
            )
        settled_e8 = 0 if self.settled is None else usd_floor_e8(self.settled, "settled")
        changes: dict[str, Any] = {
            "since_seq": seq if settings.since_seq is None else settings.since_seq,
            "promised_e8": max((settings.promised_e8 or 0) - settled_e8, 0),
        }
        if self.fresh_until is not NOT_GIVEN:
            changes["fresh_until_us"] = None if self.fresh_until is None else to_us(self.fresh_until)
        if self.free is not NOT_GIVEN:
            changes["free_e8"] = None if self.free is None else usd_floor_e8(self.free, "free")
        if self.margin_fraction is not NOT_GIVEN:
            changes["margin_e8"] = usd_ceil_e8(self.margin_fraction, "margin_fraction")
        return settings._replace(**changes)


@verb(
    "equity_seen", role="admin", call="POST /v1/portfolios/{portfolio}/equity",
    examples=("equity-seen --scope venue=kraken --equity 12500 --note 'read by hand'",),
)  # fmt: skip
class EquitySeen(ScopeCommand):
    """Say the equity that a scope's cap follows, as the reconciliation does (see `share_of_equity` of `set_cap`).

    The cap may fall below the present exposure, and below the sum of the guarantees: these stay.
    """

    equity: Annotated[Decimal, Argument(NOT_NEGATIVE, "Equity of the accounts, USD.", metavar="USD")]

    def settings_after(self, settings: ScopeSettings, seq: int) -> ScopeSettings:  # noqa: ARG002 - of its base
        """Return the settings with the cap that follows from it. Raises `WrongState` for a cap that follows nothing."""
        if settings.share_e8 is None:
            raise WrongState(
                f"the cap of {self.scope} follows no equity; set that first: ledger-sizer caps set {self.portfolio} "
                f"--scope {self.scope} --share-of-equity 0.8"
            )
        with exact_arithmetic():
            followed = self.equity * Decimal(settings.share_e8) / E8
        return settings._replace(cap_e8=usd_floor_e8(followed, "equity"))


@verb(
    "remark", role="admin", call="POST /v1/portfolios/{portfolio}/remarks",
    examples=(
        "remark --about drift-17 --event close_requested --note 'the desk knows'",
        "remark -p '*' --about bots --event deployed --detail version=1.8.2 --detail by=ann",
    ),
)  # fmt: skip
class Remark(PortfolioCommand):
    """Put something into the audit chain that changes no figure.

    Readers of the event stream see it, so this is also how reconciliation asks the trading side to close a position.
    """

    portfolio: Annotated[str, DESK_OR_PORTFOLIO] = "main"
    about: Annotated[str, Argument(LABEL, "What it concerns, such as drift-17.", examples=("drift-17",))]
    event: Annotated[str, Argument(LABEL, "What happened.", examples=("close_requested",))]
    note: Annotated[str | None, Argument(NOTE, "Why; kept with the decision.")] = None
    details: Annotated[Mapping[str, str] | None, Argument(DETAILS, "More about it: names and texts.")] = None


AnyCommand = PortfolioCommand | PositionCommand
"""Any command."""

COMMANDS: Mapping[str, type[AnyCommand]] = DECLARED
"""Command type by verb, in the order above."""

EXPIRE = "expire"
"""Verb of the ledger's own command: it ends an overdue hold."""

STEP_BACK = "step_back"
"""Verb of the ledger's own command: a portfolio's time goes back to the clock's (see `rules.state.decision_time`)."""

VERBS = (*COMMANDS, EXPIRE, STEP_BACK)
"""Verbs that a decision may have."""
