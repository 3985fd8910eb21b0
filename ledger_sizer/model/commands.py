"""The commands that a caller may send: one frozen type per verb, validated when built.

A command carries the caller's idempotency `key`: within a portfolio, one key has one effect. Bad input raises
`InvalidRequest` that names the field, so nothing malformed reaches the queue. `request_text` is the canonical form: it
is stored, hashed, and compared when a key is sent again.

Each class is the one declaration of its verb. The methods of the ledger and the clients, the HTTP call with its body,
the item of a batch, the OpenAPI document, the command line and both references come from it; `rules.decide` has its
rule.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, get_args

from ledger_sizer.model.arguments import (
    ANY_DECIMAL,
    FLAG,
    LABEL,
    NOT_NEGATIVE,
    NOTE,
    POSITIVE,
    SCORE,
    Argument,
    choice,
    decimal_kind,
)
from ledger_sizer.model.choices import HaltMode
from ledger_sizer.model.command_base import (
    DECLARED,
    DESK_OR_PORTFOLIO,
    INSTRUMENT,
    LEGS,
    MOMENT,
    SECONDS,
    TAGS,
    PortfolioCommand,
    PositionCommand,
    ScopeCommand,
    verb,
)
from ledger_sizer.model.details import DETAILS
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, Leg
from ledger_sizer.model.tags import EXTERNAL_TAG, NO_TAGS, PORTFOLIO_SCOPE, GivenTags, tags_of
from ledger_sizer.model.times import to_us
from ledger_sizer.model.units import not_negative, shown, usd_floor_e8

_FEE_RATE_END = Decimal("0.1")


def _checked_fee_rate(value: object, name: str) -> Decimal:
    rate = not_negative(value, name)
    if rate >= _FEE_RATE_END:
        raise InvalidRequest(
            f"{name} is a fraction below {_FEE_RATE_END} (0.001 is 0.1 %), got {shown(rate)}", field=name
        )
    return rate


_FEE_RATE = decimal_kind("fee_rate", _checked_fee_rate, metavar=f"0..{_FEE_RATE_END}")
_OKX_PERP = '{"symbol": "BTC-USDT-SWAP", "min_qty": 1, "max_qty": 9000, "qty_step": 1, "contract_size": 0.01}'
_SPOT = "BTC/USDT,0.0001,100,0.0001,5"
_PERP = "BTC/USDT:USDT,0.001,100,0.001,5"


@verb(
    "reserve", role="trade", call="POST /v1/reservations", creates=True,
    examples=(
        "reserve --tag venue=bybit --tag symbol=BTC --signal-score 0.9",
        f"reserve --signal-score 0.9 --price 50000 --balance 10000 --ttl 30 \\\n      --spot {_SPOT} --perp {_PERP}",
        f"reserve --price 50000 --spot {_SPOT} \\\n      --perp '{_OKX_PERP}'",
        "reserve --key cycle-17/BTC --min-notional 100 --json",
        "reserve --signal-score 0.9 --dry-run",
    ),
)  # fmt: skip
class Reserve(PortfolioCommand):
    """Ask how much may be put on a position, and hold it.

    Grants what fits under the caps of the portfolio and of every tag, and holds it until it is confirmed, released or
    expired. With both instruments and a price it also answers the quantity both legs accept. Every argument may be left
    out: then a flat budget is asked for.
    """

    tags: Annotated[GivenTags, Argument(TAGS, "A scope it counts in besides the portfolio.")] = NO_TAGS
    signal_score: Annotated[
        Decimal | None, Argument(SCORE, "Scales the size where SIZING_ENABLED=true; flat without.", flags=("--score",))
    ] = None
    price: Annotated[
        Decimal | None, Argument(POSITIVE, "USD per base unit; needed with instruments.", metavar="USD")
    ] = None
    available_balance: Annotated[
        Decimal | None,
        Argument(ANY_DECIMAL, "Free quote balance, USD; never exceeded.", flags=("--balance",), metavar="USD"),
    ] = None
    spot_instrument: Annotated[
        InstrumentInfo | str | None,
        Argument(
            INSTRUMENT, "Rules of the spot market, or its name. Give both instruments or none.", flags=("--spot",)
        ),
    ] = None
    perp_instrument: Annotated[
        InstrumentInfo | str | None,
        Argument(INSTRUMENT, "Rules of the perpetual, or its name.", flags=("--perp",)),
    ] = None
    spot_fee_rate: Annotated[
        Decimal | None,
        Argument(
            _FEE_RATE,
            "Fee of the spot buy, a fraction, if taken in base: the spot order is that much larger, within the budget.",
        ),
    ] = None
    min_notional_usd: Annotated[
        Decimal | None,
        Argument(NOT_NEGATIVE, "Deny rather than grant less than this.", flags=("--min-notional",), metavar="USD"),
    ] = None
    ttl_seconds: Annotated[
        int | float | Decimal | None,
        Argument(SECONDS, "Life of the hold unless it is confirmed; else the ledger's default.", flags=("--ttl",)),
    ] = None
    dry_run: Annotated[bool, Argument(FLAG, "Answer, but hold and record nothing.", recorded=False)] = False

    def _check_together(self) -> None:
        if EXTERNAL_TAG in self.tags:
            raise InvalidRequest(f"the tag {EXTERNAL_TAG!r} is the reconciliation's own", field="tags")
        if (self.spot_instrument is None) != (self.perp_instrument is None):
            missing = "spot_instrument" if self.spot_instrument is None else "perp_instrument"
            raise InvalidRequest(f"{missing} is missing: a quantity needs the rules of both legs", field=missing)
        if self.spot_instrument is not None and self.price is None:
            raise InvalidRequest("price is missing: with instruments the budget becomes a quantity", field="price")

    @property
    def scopes(self) -> tuple[str, ...]:
        """The portfolio, and a scope for each tag."""
        return tags_of(self.tags).scopes

    @property
    def instruments(self) -> dict[str, InstrumentInfo | str]:
        """The instruments that are given, by argument."""
        given = {"spot_instrument": self.spot_instrument, "perp_instrument": self.perp_instrument}
        return {name: instrument for name, instrument in given.items() if instrument is not None}

    @property
    def named(self) -> bool:
        """True when an instrument is given by its name."""
        return isinstance(self.spot_instrument, str) or isinstance(self.perp_instrument, str)

    @property
    def rules(self) -> tuple[InstrumentInfo, InstrumentInfo] | None:
        """Rules of the spot and of the perpetual market; None without instruments. Names must be resolved before."""
        spot, perp = self.spot_instrument, self.perp_instrument
        if spot is None or perp is None:
            return None
        assert isinstance(spot, InstrumentInfo) and isinstance(perp, InstrumentInfo), "names are resolved before"
        return spot, perp


@verb(
    "confirm", role="trade", call="POST /v1/positions/{position_id}/confirm", fills_late=True,
    examples=(
        "confirm main-17 --quantity 0.018 --price 50100 --spot-price 50000",
        "confirm main-17 --quantity 0.018 --price 50100 \\\n      --leg bybit,BTC/USDT,spot,buy,0.018,50000"
        " --leg okx,BTC-USDT-SWAP,swap,sell,0.018,50100",
    ),
)  # fmt: skip
class Confirm(PositionCommand):
    """Record the fill of a reservation.

    It counts quantity x price from now on, and the rest of its hold is freed. A fill is a fact: it is recorded also
    when the hold has expired (as a new position), or when it lands above the cap (the excess is overage and stops new
    grants).
    """

    quantity: Annotated[Decimal, Argument(POSITIVE, "Base units filled, all fills together.", metavar="QTY")]
    price: Annotated[Decimal, Argument(POSITIVE, "The perpetual's average entry price, USD.", metavar="USD")]
    spot_price: Annotated[
        Decimal | None, Argument(POSITIVE, "The spot leg's average price, USD; else `price`.", metavar="USD")
    ] = None
    legs: Annotated[
        Sequence[Leg] | None, Argument(LEGS, "The exact legs, where they differ from the reservation's.")
    ] = None


@verb(
    "release", role="trade", call="POST /v1/positions/{position_id}/release",
    examples=(
        "release main-17", "release main-18 --quantity 0.008 --key cycle-17/BTC/exit", "release main-17 --held-only"
    ),
)  # fmt: skip
class Release(PositionCommand):
    """Give a hold back, or close an open position, whole or in part.

    Works also while the portfolio is halted or above its cap.
    """

    quantity: Annotated[
        Decimal | None, Argument(POSITIVE, "Base units closed; all of it when not given.", metavar="QTY")
    ] = None
    held_only: Annotated[bool | None, Argument(FLAG, "Refuse to close a position that was filled.")] = None


@verb("extend", role="trade", call="POST /v1/positions/{position_id}/extend", examples=("extend main-17 --ttl 120",))
class Extend(PositionCommand):
    """Let a hold live longer; never shorter than it would anyway.

    A longer hold is a new risk, so a halted scope denies it.
    """

    ttl_seconds: Annotated[
        int | float | Decimal | None,
        Argument(SECONDS, "Life of the hold from now on; else the ledger's default.", flags=("--ttl",)),
    ] = None


@verb(
    "set_cap", role="admin", call="PUT /v1/portfolios/{portfolio}/caps", creates=True,
    examples=("caps set main 5000", "caps set main 2000 --scope venue=bybit"),
)  # fmt: skip
class SetCap(ScopeCommand):
    """Set the cap of a portfolio, or of one of its scopes.

    A cap below the present exposure is legal: the excess is overage, and nothing is granted until it is gone. A scope
    without a cap (null) is only counted; the portfolio's own can be changed but not removed.
    """

    cap: Annotated[Decimal | None, Argument(NOT_NEGATIVE, "USD.", metavar="CAP")]

    def _check_together(self) -> None:
        if self.cap is not None:
            usd_floor_e8(self.cap, "cap")
        elif self.scope == PORTFOLIO_SCOPE:
            raise InvalidRequest("the portfolio's cap can be changed but not removed", field="cap")

    def changes(self) -> dict[str, Any]:
        """The cap, 1e-8 USD."""
        return {"cap_e8": None if self.cap is None else usd_floor_e8(self.cap, "cap")}


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
    "adopt", role="trade", call="POST /v1/positions", creates=True,
    examples=(
        "adopt --tag venue=bybit --tag symbol=ETH --quantity 0.5 --price 3000 \\\n      --note 'opened by hand'",
        "adopt --quantity 0.5 --price 3000 --leg bybit,ETH/USDT:USDT,swap,sell,0.5,3000",
    ),
)  # fmt: skip
class Adopt(PortfolioCommand):
    """Record an open position that the ledger lacks.

    A fact like a fill: no cap refuses it, and what stands above a cap afterwards is overage.
    """

    quantity: Annotated[Decimal, Argument(POSITIVE, "Base units.", metavar="QTY")]
    price: Annotated[Decimal, Argument(POSITIVE, "The perpetual's entry price, USD.", metavar="USD")]
    tags: Annotated[GivenTags, Argument(TAGS, "A scope it counts in besides the portfolio.")] = NO_TAGS
    legs: Annotated[Sequence[Leg] | None, Argument(LEGS, "Its legs.")] = None
    note: Annotated[str | None, Argument(NOTE, "Why; kept with the decision.")] = None

    @property
    def scopes(self) -> tuple[str, ...]:
        """The portfolio, and a scope for each tag."""
        return tags_of(self.tags).scopes


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
        """Whether it is frozen."""
        return {"frozen": True}


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
        return {"frozen": False}


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
