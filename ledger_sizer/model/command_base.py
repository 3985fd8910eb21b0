"""Base classes of the commands, what declares a verb, and the kinds of argument that only commands have."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, TypeVar, dataclass_transform

from ledger_sizer.model.arguments import (
    AMOUNT_PATTERN,
    NOTE,
    Argument,
    DeclaredArgument,
    Kind,
    canonical_fields,
    canonical_object,
    check_arguments,
    decimal_json,
    declared,
    field_prefix,
    label_text,
    to_json,
)
from ledger_sizer.model.choices import Role
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.legs import (
    Leg,
    LegPlan,
    leg_from_json,
    leg_to_json,
    plan_from_json,
)
from ledger_sizer.model.names import (
    DESK,
    PORTFOLIO_OR_DESK_PATTERN,
    PORTFOLIO_PATTERN,
    POSITION_PATTERN,
    portfolio_name,
    portfolio_or_desk,
    split_position_id,
)
from ledger_sizer.model.scope_settings import ScopeSettings
from ledger_sizer.model.tags import PORTFOLIO_SCOPE, TAG_NAME, Tags, is_default_scope, scope_name, tags_of
from ledger_sizer.model.times import time_text
from ledger_sizer.model.units import decimal_text, exact_arithmetic, shown

T = TypeVar("T")

TTL_SECONDS_MAX = 30 * 24 * 3600
KEY_LENGTH_MAX = 200
LEGS_MAX = 16
GROUP_MAX = 1000
"""Most commands of an atomic group, in every face, and of one batch call over HTTP."""
SYSTEM_KEY_PREFIX = "ledger:"
"""Prefix of the keys of the ledger's own commands (expiries); refused from callers."""

SCOPE_PATTERN = rf"^({PORTFOLIO_SCOPE}|{TAG_NAME}=.{{1,128}})$"
ACCOUNT_SCOPE_PATTERN = r"^account=[^/]{1,64}/.{1,63}$"
MOMENT_PATTERN = (
    r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:[0-9]{2})$"
)  # fmt: skip


# --- kinds -------------------------------------------------------------------------------------------------------


def ttl_us(value: object, name: str = "ttl_seconds") -> int:
    """Convert seconds (int, Decimal or float: time is not money) to microseconds. Range: 0 < seconds <= 30 days."""
    number = isinstance(value, int | float | Decimal) and not isinstance(value, bool)
    if isinstance(value, float):
        number = math.isfinite(value)
    elif isinstance(value, Decimal):
        number = value.is_finite()
    if not number or not 0 < value <= TTL_SECONDS_MAX:  # type: ignore[operator]
        text = shown(value) if isinstance(value, Decimal) else str(value)
        raise InvalidRequest(f"{name} must be above 0 and at most {TTL_SECONDS_MAX} seconds, got {text}", field=name)
    with exact_arithmetic():
        return max(int(value * 1_000_000), 1)  # type: ignore[operator]


def _checked_seconds(value: object, name: str) -> int | Decimal:
    """Return a TTL as exact seconds with at most six decimals."""
    us = ttl_us(value, name)
    return value if type(value) is int else Decimal(f"{us}E-6")


def _checked_key(value: object, name: str) -> str:
    key = label_text(value, name, length_max=KEY_LENGTH_MAX)
    if key.startswith(SYSTEM_KEY_PREFIX):
        raise InvalidRequest(f"{name} {key!r}: the prefix {SYSTEM_KEY_PREFIX!r} is the ledger's own", field=name)
    return key


def _checked_moment(value: object, name: str) -> datetime:
    if not isinstance(value, datetime) or value.tzinfo is None:
        raise InvalidRequest(f"{name} must be a datetime with a time zone, got {value!r}", field=name)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidRequest(f"{name} is no time in UTC: {value}", field=name) from None


def parse_time(text: str, name: str) -> datetime:
    """Parse ISO 8601 text with a zone to a UTC datetime. Raises `InvalidRequest` for a time that does not exist."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{name} is no time that exists: {text!r:.40}", field=name) from None


def _list_of(kind: type[Any], value: object, name: str, example: str) -> tuple[Any, ...]:
    """Return 1 to 16 objects of a class as a tuple, else raise."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise InvalidRequest(
            f"{name} must be a list of {kind.__name__}, such as [{example}], got {value!r:.100}", field=name
        )
    if not 1 <= len(value) <= LEGS_MAX:
        raise InvalidRequest(f"1 to {LEGS_MAX} {name}, got {len(value)}", field=name)
    for number, one in enumerate(value):
        if not isinstance(one, kind):
            raise InvalidRequest(
                f"{name} must be a list of {kind.__name__}, such as [{example}], got {one!r:.100} in it",
                field=f"{name}.{number}",
            )
    return tuple(value)


def _checked_legs(value: object, name: str) -> tuple[Leg, ...]:
    legs: tuple[Leg, ...] = _list_of(Leg, value, name, "Leg('bybit', 'BTC/USDT', 'spot', 'buy', Decimal('0.01'))")
    seen = set()
    for number, leg in enumerate(legs):
        if leg.quantity <= 0:
            raise InvalidRequest(
                f"{name}.{number}.quantity must be above 0, got {shown(leg.quantity)}; leave out a leg that did not "
                "fill", field=f"{name}.{number}.quantity",
            )  # fmt: skip
        if leg.market in seen:
            raise InvalidRequest(
                f"{name}.{number}: two legs are {leg.side} {leg.symbol} at {leg.venue or 'no venue'}; add them up",
                field=f"{name}.{number}",
            )
        seen.add(leg.market)
    return legs


def _checked_plans(value: object, name: str) -> tuple[LegPlan, ...]:
    return _list_of(LegPlan, value, name, "LegPlan('bybit:BTC/USDT:USDT', 'buy')")


def _each_from_json(read: Callable[[Mapping[str, Any]], T]) -> Callable[[Sequence[Mapping[str, Any]], str], list[T]]:
    def read_all(forms: Sequence[Mapping[str, Any]], name: str) -> list[T]:
        found = []
        for number, form in enumerate(forms):
            with field_prefix(f"{name}.{number}"):
                found.append(read(form))
        return found

    return read_all


def _account_scope(value: object, name: str) -> str:
    scope = scope_name(value)
    if not re.match(ACCOUNT_SCOPE_PATTERN, scope):
        raise InvalidRequest(f"{name} must be an exchange account, like account=bybit/main, got {scope!r}", field=name)
    return scope


KEY = Kind(name="key", check=_checked_key, length=(1, KEY_LENGTH_MAX), examples=("cycle-17/BTC",))
PORTFOLIO = Kind(name="portfolio", check=portfolio_name, pattern=PORTFOLIO_PATTERN, examples=("main",), metavar="NAME")
PORTFOLIO_OR_DESK = Kind(
    name="portfolio_or_desk", check=portfolio_or_desk, pattern=PORTFOLIO_OR_DESK_PATTERN, examples=("main", DESK),
    metavar="NAME",
)  # fmt: skip
DESK_OR_PORTFOLIO = Argument(
    PORTFOLIO_OR_DESK, "The pot of capital; * is the desk: all of them.", flags=("-p",), recorded=False
)
POSITION = Kind(
    name="position", check=lambda value, _: value, pattern=POSITION_PATTERN, examples=("main-17",),
    metavar="POSITION_ID",
)  # fmt: skip
"""`PositionCommand` checks it, because it also needs the parts."""
SCOPE = Kind(
    name="scope", check=lambda value, _: scope_name(value), pattern=SCOPE_PATTERN,
    examples=("portfolio", "venue=bybit"), metavar="SCOPE",
)  # fmt: skip
ACCOUNT_SCOPE = Kind(
    name="account_scope", check=_account_scope, pattern=ACCOUNT_SCOPE_PATTERN,
    examples=("account=bybit/main",), metavar="SCOPE",
)  # fmt: skip
TAGS = Kind(
    name="tags", check=lambda value, _: tags_of(value), text=lambda tags: tags.text, to_json=Tags.to_json,
    metavar="NAME=VALUE",
)  # fmt: skip
SECONDS = Kind(
    name="seconds", check=_checked_seconds, pattern=AMOUNT_PATTERN, metavar="SECONDS",
    text=lambda value: decimal_json(value) if isinstance(value, Decimal) else f'"{value}"',
    to_json=lambda value: decimal_text(value) if isinstance(value, Decimal) else value,
    from_json=lambda value, _: value if type(value) is int else Decimal(value),
)  # fmt: skip
"""A whole number, or a decimal as text."""
MOMENT = Kind(
    name="moment", check=_checked_moment, text=lambda moment: f'"{time_text(moment)}"', to_json=time_text,
    from_json=parse_time, pattern=MOMENT_PATTERN, examples=("2026-01-31T12:00:00Z",), metavar="TIME",
)  # fmt: skip
"""ISO 8601 with a time zone; without one the time would be ambiguous."""
LEGS = Kind(
    name="legs", check=_checked_legs, text=lambda legs: f"[{','.join(map(canonical_object, legs))}]", metavar="LEG",
    to_json=lambda legs: [leg_to_json(leg) for leg in legs], from_json=_each_from_json(leg_from_json),
)  # fmt: skip
LEG_PLANS = Kind(
    name="leg_plans", check=_checked_plans, text=lambda plans: f"[{','.join(map(canonical_object, plans))}]",
    metavar="LEG", to_json=lambda plans: [to_json(plan) for plan in plans], from_json=_each_from_json(plan_from_json),
)  # fmt: skip


# --- commands ----------------------------------------------------------------------------------------------------

C = TypeVar("C", bound=type[Any])


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False, field_specifiers=(field,))
def command_fields(of: C) -> C:
    """Make a frozen dataclass of a command. Equality and repr are `Command`'s: classes without their own start fast."""
    return dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)(of)  # type: ignore[return-value]


@command_fields
class Command:
    """Base of all commands. key: the idempotency key, 1 to 200 printable characters.

    creates: whether it may begin a portfolio. fills_late: whether it may record the fill of an expired hold.
    """

    verb: ClassVar[str]
    role: ClassVar[Role]
    method: ClassVar[str]
    path: ClassVar[str]
    examples: ClassVar[tuple[str, ...]]
    creates: ClassVar[bool] = False
    fills_late: ClassVar[bool] = False
    arguments: ClassVar[tuple[DeclaredArgument, ...]]
    checks: ClassVar[tuple[tuple[str, Callable[[Any, str], Any], bool, Any], ...]]
    texts: ClassVar[tuple[tuple[str, str, Callable[[Any], str]], ...]]

    key: Annotated[
        str,
        Argument(
            KEY,
            "Idempotency key: sent again with the same request it gives the same answer and has no second effect.",
            recorded=False,
            sent=False,
        ),
    ]
    reference: Annotated[
        str | None,
        Argument(NOTE, "A text of your own, such as order ids; it is kept as it is.", recorded=False, metavar="TEXT"),
    ] = None

    def __post_init__(self) -> None:
        check_arguments(self)
        self._check_together()

    def _check_together(self) -> None:
        """Check the rules across several fields."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._values() == other._values()

    def __hash__(self) -> int:
        return hash(self._values())

    def __repr__(self) -> str:
        given = ", ".join(f"{one.name}={getattr(self, one.name)!r}" for one in self.arguments)
        return f"{type(self).__name__}({given})"

    def _values(self) -> tuple[Any, ...]:
        return tuple([getattr(self, one.name) for one in self.arguments])

    def request_text(self) -> str:
        """Return canonical JSON of the request without its key. Equal requests give equal text."""
        return f'{{"command":"{self.verb}"{canonical_fields(self)}}}'


@command_fields
class PortfolioCommand(Command):
    """Base of the commands that name their portfolio."""

    number: int | None = field(init=False, default=None)
    """Of the position that it is about."""

    portfolio: Annotated[str, Argument(PORTFOLIO, "The pot of capital.", flags=("-p",), recorded=False)] = "main"

    @property
    def scopes(self) -> tuple[str, ...]:
        """Names of the scopes it is about, besides those of its position."""
        return ()


@command_fields
class PositionCommand(Command):
    """Base of the commands about one position. Its portfolio is part of the position's name."""

    position_id: Annotated[str, Argument(POSITION, "As reserve answered it, e.g. main-17.")]
    portfolio: str = field(init=False)
    number: int = field(init=False)

    def _check_together(self) -> None:
        portfolio, number = split_position_id(self.position_id)
        object.__setattr__(self, "portfolio", portfolio)
        object.__setattr__(self, "number", number)

    @property
    def scopes(self) -> tuple[str, ...]:
        """Names of the scopes it is about, besides those of its position."""
        return ()


@command_fields
class ScopeCommand(PortfolioCommand):
    """Base of the commands that change what a scope is set to."""

    scope: Annotated[str, Argument(SCOPE, "The whole `portfolio`, or like venue=bybit.")] = PORTFOLIO_SCOPE
    note: Annotated[str | None, Argument(NOTE, "Why; kept with the decision.")] = None

    def _check_together(self) -> None:
        if is_default_scope(self.scope):
            raise InvalidRequest(
                f"{self.scope} is the default cap of a tag name and takes only a cap, by set_cap; name one scope, such "
                f"as {self.scope[:-1]}bybit",
                field="scope",
            )
        if self.portfolio == DESK and self.scope != PORTFOLIO_SCOPE:
            raise InvalidRequest(
                f"the desk (portfolio '*') has no scopes, got {self.scope!r}; leave scope out, or name a portfolio",
                field="scope",
            )

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scope."""
        return (self.scope,)

    def changes(self) -> dict[str, Any]:
        """Return the settings of the scope that it changes, by name."""
        raise NotImplementedError

    def settings_after(self, settings: ScopeSettings, seq: int) -> ScopeSettings:  # noqa: ARG002 - some need it
        """Return the settings of the scope after it. seq: of its decision. Raises where it does not fit them."""
        return settings._replace(**self.changes())


DECLARED: dict[str, type[PortfolioCommand] | type[PositionCommand]] = {}
"""Command type by verb: what `verb` has declared so far. `model.commands` declares all."""


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def verb(
    name: str, *, role: Role, call: str, creates: bool = False, fills_late: bool = False, examples: Sequence[str] = ()
) -> Callable[[C], C]:
    """Declare the command of a verb: a decorator of a class that it makes a frozen dataclass.

    role: of the API keys that may send it. call: HTTP method and path; a field in the path is not in the body.
    examples: command lines without the leading `ledger-sizer`, which its `--help` shows and tests run.
    """

    def declare(of: C) -> C:
        command = declared(command_fields(of))
        command.verb, command.role, command.creates, command.fills_late = name, role, creates, fills_late
        command.method, command.path = call.split(" ")
        command.examples = tuple(examples)
        DECLARED[name] = command
        return command

    return declare
