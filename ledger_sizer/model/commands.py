"""The commands that a caller may send: one frozen type per verb, validated when built.

A command carries the caller's idempotency `key`: within a portfolio, one key has one effect. Bad input raises
`InvalidRequest` that names the field, so nothing malformed reaches the queue. `request_text` is the canonical form: it
is stored, hashed, and compared when a key is sent again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import ClassVar, Literal

from ledger_sizer.model.command_base import PortfolioCommand, PositionCommand, exact_seconds
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo, Leg, instrument_name, label_text
from ledger_sizer.model.tags import EXTERNAL_TAG, NO_TAGS, PORTFOLIO_SCOPE, scope_name, tags_of
from ledger_sizer.model.units import exact_decimal, not_negative, positive, usd_floor_e8

_LEGS_MAX = 16
SPOT_FEE_RATE_END = Decimal("0.1")


def _checked_instrument(value: object, name: str) -> InstrumentInfo | str | None:
    if value is None or isinstance(value, InstrumentInfo):
        return value
    if isinstance(value, str):
        return instrument_name(value, name)
    raise InvalidRequest(f"{name} must be an InstrumentInfo, got {type(value).__name__}", field=name)


def _checked_legs(value: object) -> tuple[Leg, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or not all(isinstance(leg, Leg) for leg in value):
        raise InvalidRequest(f"legs must be a list of Leg, got {value!r}", field="legs")
    if not 1 <= len(value) <= _LEGS_MAX:
        raise InvalidRequest(f"1 to {_LEGS_MAX} legs, got {len(value)}", field="legs")
    return tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reserve(PortfolioCommand):
    """Size a new position and hold its budget.

    tags: the scopes it counts in besides the portfolio, e.g. `{"venue": "bybit", "symbol": "BTC"}`.
    signal_score: 0 to 1; None sizes flat. price: USD per base unit. available_balance: free quote balance, USD.
    spot_instrument, perp_instrument: give both, with a price, to get a quantity both legs accept. Give their rules, or
    names such as `bybit:BTC/USDT` and `bybit:BTC/USDT:USDT`, whose rules the ledger stores (`instruments refresh`).
    spot_fee_rate: fee of the spot buy as a fraction of it, where the exchange takes it in the base asset. The planned
    spot leg is then larger, within the same budget, so that after the fee the perpetual's quantity is left.
    min_notional_usd: deny rather than grant less than this. ttl_seconds: lifetime of the hold unless confirmed; None
    takes the ledger's default. dry_run: answer without holding or recording.
    """

    verb: ClassVar[str] = "reserve"
    recorded_fields: ClassVar[tuple[str, ...]] = (
        "available_balance",
        "min_notional_usd",
        "perp_instrument",
        "price",
        "signal_score",
        "spot_fee_rate",
        "spot_instrument",
        "tags",
        "ttl_seconds",
    )

    tags: Mapping[str, str] = NO_TAGS
    signal_score: Decimal | None = None
    price: Decimal | None = None
    available_balance: Decimal | None = None
    spot_instrument: InstrumentInfo | str | None = None
    perp_instrument: InstrumentInfo | str | None = None
    spot_fee_rate: Decimal | None = None
    min_notional_usd: Decimal | None = None
    ttl_seconds: int | float | Decimal | None = None
    dry_run: bool = False

    def __post_init__(self) -> None:
        self._check_key()
        self._check_portfolio()
        put = object.__setattr__
        put(self, "tags", tags_of(self.tags))
        if EXTERNAL_TAG in self.tags:
            raise InvalidRequest(f"the tag {EXTERNAL_TAG!r} is the reconciliation's own", field="tags")
        if not isinstance(self.dry_run, bool):
            raise InvalidRequest(f"dry_run must be True or False, got {self.dry_run!r}", field="dry_run")
        if self.signal_score is not None:
            put(self, "signal_score", checked_score(self.signal_score))
        if self.price is not None:
            put(self, "price", positive(self.price, "price"))
        if self.available_balance is not None:
            put(self, "available_balance", exact_decimal(self.available_balance, "available_balance"))
        if self.min_notional_usd is not None:
            put(self, "min_notional_usd", not_negative(self.min_notional_usd, "min_notional_usd"))
        if self.ttl_seconds is not None:
            put(self, "ttl_seconds", exact_seconds(self.ttl_seconds))
        spot = _checked_instrument(self.spot_instrument, "spot_instrument")
        perp = _checked_instrument(self.perp_instrument, "perp_instrument")
        if (spot is None) != (perp is None):
            missing = "spot_instrument" if spot is None else "perp_instrument"
            raise InvalidRequest(f"{missing} is missing: a quantity needs the rules of both legs", field=missing)
        if spot is not None and self.price is None:
            raise InvalidRequest("price is missing: with instruments the budget becomes a quantity", field="price")
        if self.spot_fee_rate is not None:
            put(self, "spot_fee_rate", not_negative(self.spot_fee_rate, "spot_fee_rate"))
            if self.spot_fee_rate >= SPOT_FEE_RATE_END:
                raise InvalidRequest(
                    f"spot_fee_rate is a fraction below {SPOT_FEE_RATE_END} (0.001 is 0.1 %), got {self.spot_fee_rate}",
                    field="spot_fee_rate",
                )

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


def checked_score(value: object) -> Decimal:
    """Return the signal score if it is an exact number in [0, 1], else raise `InvalidRequest`. Never clamped."""
    score = exact_decimal(value, "signal_score")
    if not 0 <= score <= 1:
        raise InvalidRequest(f"signal_score must be between 0 and 1, got {score}", field="signal_score")
    return score


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirm(PositionCommand):
    """Record the fill of a reservation. It counts quantity x price from now on; the rest of its hold is freed.

    quantity: base units filled (all fills together). price: the perpetual's average entry price, USD.
    spot_price: the spot leg's average price, USD; None takes `price`. legs: the exact legs, where they differ from the
    two instruments of the reservation. A fill after the hold expired is recorded too, as a new position.
    """

    verb: ClassVar[str] = "confirm"
    recorded_fields: ClassVar[tuple[str, ...]] = ("legs", "position_id", "price", "quantity", "spot_price")

    quantity: Decimal
    price: Decimal
    spot_price: Decimal | None = None
    legs: Sequence[Leg] | None = None

    def __post_init__(self) -> None:
        self._check_key()
        self._check_position()
        put = object.__setattr__
        put(self, "quantity", positive(self.quantity, "quantity"))
        put(self, "price", positive(self.price, "price"))
        if self.spot_price is not None:
            put(self, "spot_price", positive(self.spot_price, "spot_price"))
        put(self, "legs", _checked_legs(self.legs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Release(PositionCommand):
    """Release a hold, or close an open position.

    quantity: base units closed; None closes all of it. held_only: True refuses to close, for a clean-up that must
    not touch a filled position.
    """

    verb: ClassVar[str] = "release"
    recorded_fields: ClassVar[tuple[str, ...]] = ("held_only", "position_id", "quantity")

    quantity: Decimal | None = None
    held_only: bool | None = None

    def __post_init__(self) -> None:
        self._check_key()
        self._check_position()
        if not (self.held_only is None or isinstance(self.held_only, bool)):
            raise InvalidRequest(f"held_only must be True, False or None, got {self.held_only!r}", field="held_only")
        if self.quantity is not None:
            object.__setattr__(self, "quantity", positive(self.quantity, "quantity"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Extend(PositionCommand):
    """Extend a hold to `ttl_seconds` from now (the ledger's default when None). Never shortens a hold."""

    verb: ClassVar[str] = "extend"
    recorded_fields: ClassVar[tuple[str, ...]] = ("position_id", "ttl_seconds")

    ttl_seconds: int | float | Decimal | None = None

    def __post_init__(self) -> None:
        self._check_key()
        self._check_position()
        if self.ttl_seconds is not None:
            object.__setattr__(self, "ttl_seconds", exact_seconds(self.ttl_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class SetCap(PortfolioCommand):
    """Set the cap of a scope, in USD. None removes a tag's cap (the portfolio always has one).

    A cap below the present exposure is legal: the excess is overage, and nothing more is granted until it is gone.
    """

    verb: ClassVar[str] = "set_cap"
    recorded_fields: ClassVar[tuple[str, ...]] = ("cap", "scope")

    cap: Decimal | None
    scope: str = PORTFOLIO_SCOPE

    def __post_init__(self) -> None:
        self._check_key()
        self._check_portfolio()
        object.__setattr__(self, "scope", scope_name(self.scope))
        if self.cap is not None:
            object.__setattr__(self, "cap", not_negative(self.cap, "cap"))
            usd_floor_e8(self.cap, "cap")
        elif self.scope == PORTFOLIO_SCOPE:
            raise InvalidRequest("the portfolio's cap can be changed but not removed", field="cap")


@dataclass(frozen=True, slots=True, kw_only=True)
class Halt(PortfolioCommand):
    """Stop new reservations in a scope. mode: `halted` (holds cannot be extended either) or `reducing` (they can)."""

    verb: ClassVar[str] = "halt"
    recorded_fields: ClassVar[tuple[str, ...]] = ("mode", "note", "scope")

    scope: str = PORTFOLIO_SCOPE
    mode: Literal["halted", "reducing"] = "halted"
    note: str | None = None

    def __post_init__(self) -> None:
        _check_scope_and_note(self)
        if self.mode not in ("halted", "reducing"):
            raise InvalidRequest(f"mode must be 'halted' or 'reducing', got {self.mode!r}", field="mode")
        object.__setattr__(self, "mode", str.__str__(self.mode))


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume(PortfolioCommand):
    """Allow new reservations in a scope again."""

    verb: ClassVar[str] = "resume"
    recorded_fields: ClassVar[tuple[str, ...]] = ("note", "scope")

    scope: str = PORTFOLIO_SCOPE
    note: str | None = None

    def __post_init__(self) -> None:
        _check_scope_and_note(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Adopt(PortfolioCommand):
    """Record a position that the exchange has and the ledger lacks. It is a fact: no cap can refuse it.

    quantity: base units. price: the perpetual's entry price, USD. Exposure above a cap afterwards is overage.
    """

    verb: ClassVar[str] = "adopt"
    recorded_fields: ClassVar[tuple[str, ...]] = ("legs", "note", "price", "quantity", "tags")

    quantity: Decimal
    price: Decimal
    tags: Mapping[str, str] = NO_TAGS
    legs: Sequence[Leg] | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        self._check_key()
        self._check_portfolio()
        put = object.__setattr__
        put(self, "tags", tags_of(self.tags))
        put(self, "quantity", positive(self.quantity, "quantity"))
        put(self, "price", positive(self.price, "price"))
        put(self, "legs", _checked_legs(self.legs))
        _check_note(self.note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Freeze(PortfolioCommand):
    """Deny new reservations in a scope as `unreconciled`, because the ledger and the exchange do not agree about it.

    Independent of the operator's `halt`: `thaw` ends a freeze, `resume` a halt. Holds may be extended.
    """

    verb: ClassVar[str] = "freeze"
    recorded_fields: ClassVar[tuple[str, ...]] = ("note", "scope")

    scope: str = PORTFOLIO_SCOPE
    note: str | None = None

    def __post_init__(self) -> None:
        _check_scope_and_note(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thaw(PortfolioCommand):
    """End a freeze."""

    verb: ClassVar[str] = "thaw"
    recorded_fields: ClassVar[tuple[str, ...]] = ("note", "scope")

    scope: str = PORTFOLIO_SCOPE
    note: str | None = None

    def __post_init__(self) -> None:
        _check_scope_and_note(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reconciled(PortfolioCommand):
    """Set the time until which a scope is trusted to agree with the exchange. From `fresh_until` on every reservation
    in it is denied as `unreconciled`, until the next `Reconciled`. None trusts it without end (the default of a scope).

    fresh_until: an aware datetime. It is a point in time, not an age, so that a reconciler that was paused and resumes
    late cannot make an old comparison count as fresh.
    """

    verb: ClassVar[str] = "reconciled"
    recorded_fields: ClassVar[tuple[str, ...]] = ("fresh_until", "note", "scope")

    fresh_until: datetime | None
    scope: str = PORTFOLIO_SCOPE
    note: str | None = None

    def __post_init__(self) -> None:
        _check_scope_and_note(self)
        until: object = self.fresh_until
        if until is None:
            return
        if not isinstance(until, datetime) or until.tzinfo is None:
            raise InvalidRequest(f"fresh_until must be a datetime with a time zone, got {until!r}", field="fresh_until")
        try:
            object.__setattr__(self, "fresh_until", until.astimezone(UTC))
        except OverflowError:
            raise InvalidRequest(f"fresh_until is no time in UTC: {until}", field="fresh_until") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Remark(PortfolioCommand):
    """Add an entry to the audit chain that changes no figure: what was found at the exchange, what was decided.

    about: what it concerns, such as `drift-17`. event: what happened, such as `close_requested`. Readers of the event
    stream see it, so this is also how reconciliation asks the trading side to close a position.
    """

    verb: ClassVar[str] = "remark"
    recorded_fields: ClassVar[tuple[str, ...]] = ("about", "event", "note")

    about: str
    event: str
    note: str | None = None

    def __post_init__(self) -> None:
        self._check_key()
        self._check_portfolio()
        object.__setattr__(self, "about", label_text(self.about, "about"))
        label_text(self.event, "event")
        _check_note(self.note)


def _check_scope_and_note(command: Halt | Resume | Freeze | Thaw | Reconciled) -> None:
    command._check_key()
    command._check_portfolio()
    object.__setattr__(command, "scope", scope_name(command.scope))
    _check_note(command.note)


def _check_note(note: str | None) -> None:
    if note is not None:
        label_text(note, "note", length_max=500)


COMMANDS: Mapping[str, type[PortfolioCommand] | type[PositionCommand]] = {
    command.verb: command for command in (
        Reserve, Confirm, Release, Extend, SetCap, Halt, Resume, Adopt, Freeze, Thaw, Reconciled, Remark
    )
}  # fmt: skip
"""Command type by verb."""

AnyCommand = PortfolioCommand | PositionCommand
"""Any command."""
