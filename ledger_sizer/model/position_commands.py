"""The commands about positions: what a bot sends, one frozen type per verb (see `model.commands`)."""

from collections.abc import Sequence
from dataclasses import field
from decimal import Decimal
from typing import Annotated, get_args

from ledger_sizer.model.arguments import (
    ANY_DECIMAL,
    FLAG,
    NOT_NEGATIVE,
    NOTE,
    POSITIVE,
    SCORE,
    Argument,
    choice,
)
from ledger_sizer.model.choices import Rest
from ledger_sizer.model.command_base import (
    LEG_PLANS,
    LEGS,
    POSITION,
    SECONDS,
    TAGS,
    PortfolioCommand,
    PositionCommand,
    verb,
)
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.model.legs import FEE_RATE, INSTRUMENT, Leg, LegPlan
from ledger_sizer.model.names import split_position_id
from ledger_sizer.model.plans import Plan, leg_plans, pair_plans, tags_with_legs
from ledger_sizer.model.tags import EXTERNAL_TAG, NO_TAGS, GivenTags, Tags, tags_of
from ledger_sizer.model.units import usd_floor_e8

_OKX_PERP = '{"symbol": "BTC-USDT-SWAP", "min_qty": 1, "max_qty": 9000, "qty_step": 1, "contract_size": 0.01}'
_SPOT = "BTC/USDT,0.0001,100,0.0001,5"
_PERP = "BTC/USDT:USDT,0.001,100,0.001,5"
_REST = choice(*get_args(Rest))


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
    expired. With legs (or the short form of two: both instruments) and a price it also answers the quantity that every
    leg accepts, and what to order for each. With `position_id` it asks for more of a live position. Every argument may
    be left out: then a flat budget is asked for.
    """

    tags: Annotated[GivenTags, Argument(TAGS, "A scope it counts in besides the portfolio.")] = NO_TAGS
    signal_score: Annotated[
        Decimal | None, Argument(SCORE, "Scales the size where SIZING_ENABLED=true; flat without.", flags=("--score",))
    ] = None
    amount_usd: Annotated[
        Decimal | None, Argument(POSITIVE, "The budget asked for, instead of a score.", metavar="USD")
    ] = None
    max_position_usd: Annotated[
        Decimal | None, Argument(POSITIVE, "A maximum below the settings' one; the score scales it.", metavar="USD")
    ] = None
    price: Annotated[
        Decimal | None,
        Argument(POSITIVE, "USD per coin; needed for a quantity, unless every leg has its own.", metavar="USD"),
    ] = None
    available_balance: Annotated[
        Decimal | None,
        Argument(ANY_DECIMAL, "Free quote balance, USD; never exceeded.", flags=("--balance",), metavar="USD"),
    ] = None
    legs: Annotated[
        Sequence[LegPlan] | None, Argument(LEG_PLANS, "The markets to buy and sell in, 1 to 16 of one asset.")
    ] = None
    spot_instrument: Annotated[
        InstrumentInfo | str | None,
        Argument(
            INSTRUMENT,
            "Short form of two legs: the market that is bought, its rules or name. Give both instruments or none.",
            flags=("--spot",),
        ),
    ] = None
    perp_instrument: Annotated[
        InstrumentInfo | str | None,
        Argument(INSTRUMENT, "Short form: the contract that is sold, its rules or name.", flags=("--perp",)),
    ] = None
    spot_fee_rate: Annotated[
        Decimal | None,
        Argument(
            FEE_RATE,
            "Fee of the spot buy, a fraction, if taken in base: the spot order is that much larger, within the budget.",
        ),
    ] = None
    min_notional_usd: Annotated[
        Decimal | None,
        Argument(NOT_NEGATIVE, "Deny rather than grant less than this.", flags=("--min-notional",), metavar="USD"),
    ] = None
    position_id: Annotated[str | None, Argument(POSITION, "Ask for more of this live position.")] = None
    ttl_seconds: Annotated[
        int | float | Decimal | None,
        Argument(SECONDS, "Life of the hold unless it is confirmed; else the ledger's default.", flags=("--ttl",)),
    ] = None
    until_known: Annotated[
        bool | None, Argument(FLAG, "The hold never ends by time: an order is out, its fate not known.")
    ] = None
    dry_run: Annotated[bool, Argument(FLAG, "Answer, but hold and record nothing.", recorded=False)] = False
    plans: tuple[Plan, ...] | None = field(init=False, default=None)
    position_tags: Tags = field(init=False, default=NO_TAGS)

    def _check_together(self) -> None:
        tags = tags_of(self.tags)
        if EXTERNAL_TAG in tags:
            raise InvalidRequest(f"the tag {EXTERNAL_TAG!r} is the reconciliation's own", field="tags")
        _keep(self, "position_tags", tags)
        if self.spot_instrument is not None and self.perp_instrument is not None:
            self._check_pair()
        elif self.spot_instrument is not None or self.perp_instrument is not None:
            missing = "spot_instrument" if self.spot_instrument is None else "perp_instrument"
            raise InvalidRequest(
                f"{missing} is missing: a quantity needs the rules of both legs; for one leg give legs=[LegPlan(...)]",
                field=missing,
            )
        elif self.legs is not None:
            self._check_legs()
        if self.amount_usd is not None:
            self._check_amount()
        if self.until_known is not None:
            _check_until_known(self)
        if self.position_id is not None:
            self._check_position()

    def _check_pair(self) -> None:
        if self.legs is not None:
            raise InvalidRequest("give legs, or spot_instrument and perp_instrument, not both", field="legs")
        if self.price is None:
            raise InvalidRequest("price is missing: with instruments the budget becomes a quantity", field="price")
        spot, perp = self.spot_instrument, self.perp_instrument
        if isinstance(spot, InstrumentInfo) and isinstance(perp, InstrumentInfo):
            plans = pair_plans(spot, perp, self.price, self.spot_fee_rate)
            _keep(self, "plans", plans)
            _keep(self, "position_tags", tags_with_legs(self.position_tags, plans, ()))

    def _check_legs(self) -> None:
        legs = self.legs or ()
        if self.spot_fee_rate is not None:
            raise InvalidRequest(
                "spot_fee_rate belongs to the short form; give LegPlan(..., fee_rate=)", field="spot_fee_rate"
            )
        if not self.named:
            plans = leg_plans(legs, self.price)
            _keep(self, "plans", plans)
            _keep(self, "position_tags", tags_with_legs(self.position_tags, plans, legs))

    def _check_amount(self) -> None:
        if self.signal_score is not None:
            raise InvalidRequest(
                "give amount_usd or signal_score, not both: with an amount no score is needed", field="amount_usd"
            )
        usd_floor_e8(self.amount_usd or Decimal(0), "amount_usd")

    def _check_position(self) -> None:
        portfolio, number = split_position_id(self.position_id or "")
        if self.portfolio not in (portfolio, "main"):
            raise InvalidRequest(
                f"position_id {self.position_id} is not of the portfolio {self.portfolio!r}", field="position_id"
            )
        _keep(self, "portfolio", portfolio)
        _keep(self, "number", number)

    @property
    def scopes(self) -> tuple[str, ...]:
        """The portfolio, and a scope for each value of a tag, those of the legs among them."""
        return self.position_tags.scopes

    @property
    def markets(self) -> list[InstrumentInfo | str]:
        """The instruments that are given, in the order of the legs."""
        if self.legs is not None:
            return [leg.instrument for leg in self.legs]
        return [one for one in (self.spot_instrument, self.perp_instrument) if one is not None]

    @property
    def named(self) -> bool:
        """True when an instrument is given by its name."""
        return any(isinstance(one, str) for one in self.markets)


_keep = object.__setattr__


def _check_until_known(command: "Reserve | Extend") -> None:
    if not command.until_known:
        _keep(command, "until_known", None)  # false asks for nothing, and equal requests have equal texts
    elif command.ttl_seconds is not None:
        raise InvalidRequest("give until_known or ttl_seconds, not both: it never ends by time", field="ttl_seconds")


@verb(
    "confirm", role="trade", call="POST /v1/positions/{position_id}/confirm", fills_late=True,
    examples=(
        "confirm main-17 --quantity 0.018 --price 50100 --spot-price 50000",
        "confirm main-17 --quantity 0.018 --price 50100 \\\n      --leg bybit,BTC/USDT,spot,buy,0.018,50000"
        " --leg okx,BTC-USDT-SWAP,swap,sell,0.018,50100",
        "confirm main-17 --quantity 0.006 --price 50100 --rest hold --key order-7/fill-1",
    ),
)  # fmt: skip
class Confirm(PositionCommand):
    """Record a fill of a reservation.

    It counts quantity x price from now on, and the rest of its hold is freed, or stays held with `rest=hold`, so that
    fills are told one by one, each under its own key. A fill is a fact: it is recorded also when the hold has expired
    or was released (as a new position), or when it lands above the cap (the excess is overage and stops new grants).
    """

    quantity: Annotated[Decimal, Argument(POSITIVE, "Coins filled, not told before.", metavar="QTY")]
    price: Annotated[
        Decimal, Argument(POSITIVE, "Their average price, of the perpetual beside a spot leg, USD.", metavar="USD")
    ]
    spot_price: Annotated[
        Decimal | None, Argument(POSITIVE, "The spot leg's average price, USD; else `price`.", metavar="USD")
    ] = None
    legs: Annotated[
        Sequence[Leg] | None, Argument(LEGS, "The legs that filled, exactly; else all of the reservation's.")
    ] = None
    rest: Annotated[
        Rest | None, Argument(_REST, "What becomes of the rest of the hold: free (without it) or hold.")
    ] = None

    def _check_together(self) -> None:
        PositionCommand._check_together(self)
        if self.rest == "free":
            _keep(self, "rest", None)  # said or not, it is the same request

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the venues where it filled."""
        return _venue_scopes(self.legs)


def _venue_scopes(legs: Sequence[Leg] | None) -> tuple[str, ...]:
    return tuple([f"venue={leg.venue}" for leg in legs or () if leg.venue])


@verb(
    "fill", role="trade", call="POST /v1/positions/{position_id}/fill", fills_late=True,
    examples=("fill main-17 --filled-quantity 0.012 --price 50090",),
)  # fmt: skip
class Fill(PositionCommand):
    """Say how much of a reservation is filled by now, whatever was told before.

    Both figures are those of all fills so far, closes not subtracted. What is new is recorded: as a first fill, a
    further one, a late one, or a position of its own. A figure that is not larger than the known one changes nothing.
    """

    filled_quantity: Annotated[Decimal, Argument(POSITIVE, "Coins filled so far.", metavar="QTY")]
    price: Annotated[Decimal, Argument(POSITIVE, "Their average price so far, USD.", metavar="USD")]
    rest: Annotated[Rest, Argument(_REST, "What becomes of the rest of the hold: hold or free.")] = "hold"


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
        Decimal | None, Argument(POSITIVE, "Coins closed; all of it when not given.", metavar="QTY")
    ] = None
    held_only: Annotated[bool | None, Argument(FLAG, "Free the hold; refuse to close what was filled.")] = None


@verb(
    "extend", role="trade", call="POST /v1/positions/{position_id}/extend",
    examples=("extend main-17 --ttl 120", "extend main-17 --until-known"),
)  # fmt: skip
class Extend(PositionCommand):
    """Let a hold live longer; never shorter than it would anyway.

    A longer hold is a new risk, so a halted scope denies it. With `until_known` the hold never ends by time: an order
    is out and its fate not known. That is a fact, which no halt denies.
    """

    ttl_seconds: Annotated[
        int | float | Decimal | None,
        Argument(SECONDS, "Life of the hold from now on; else the ledger's default.", flags=("--ttl",)),
    ] = None
    until_known: Annotated[bool | None, Argument(FLAG, "Until a fill, a release or the reconciliation decides it.")] = (
        None
    )

    def _check_together(self) -> None:
        PositionCommand._check_together(self)
        if self.until_known is not None:
            _check_until_known(self)


@verb(
    "retag", role="admin", call="POST /v1/positions/{position_id}/retag",
    examples=("retag main-17 --tag strategy=basis --tag desk=two",),
)  # fmt: skip
class Retag(PositionCommand):
    """Give a live position other tags, so that it counts in other scopes.

    Scopes that it newly enters must have room for it, and may deny it as they would a reservation. `venue` and `symbol`
    stay as they are, unless they are given.
    """

    tags: Annotated[GivenTags, Argument(TAGS, "A scope it counts in from now on.")]
    note: Annotated[str | None, Argument(NOTE, "Why; kept with the decision.")] = None

    def _check_together(self) -> None:
        PositionCommand._check_together(self)
        if EXTERNAL_TAG in tags_of(self.tags):
            raise InvalidRequest(f"the tag {EXTERNAL_TAG!r} is the reconciliation's own", field="tags")

    @property
    def scopes(self) -> tuple[str, ...]:
        """The scopes of the new tags."""
        return tags_of(self.tags).scopes


@verb(
    "reprice", role="admin", call="POST /v1/positions/{position_id}/reprice",
    examples=("reprice main-18 --price 61000 --note 'month end'",),
)  # fmt: skip
class Reprice(PositionCommand):
    """Count an open position at another price from now on.

    A fact: no cap refuses it, and what stands above a cap afterwards is overage. What it cost stays as it is.
    """

    price: Annotated[Decimal, Argument(POSITIVE, "USD per coin.", metavar="USD")]
    note: Annotated[str | None, Argument(NOTE, "Why; kept with the decision.")] = None


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

    quantity: Annotated[Decimal, Argument(POSITIVE, "Coins.", metavar="QTY")]
    price: Annotated[Decimal, Argument(POSITIVE, "Average entry price, USD.", metavar="USD")]
    tags: Annotated[GivenTags, Argument(TAGS, "A scope it counts in besides the portfolio.")] = NO_TAGS
    legs: Annotated[Sequence[Leg] | None, Argument(LEGS, "Its legs.")] = None
    note: Annotated[str | None, Argument(NOTE, "Why; kept with the decision.")] = None

    @property
    def scopes(self) -> tuple[str, ...]:
        """The portfolio, and a scope for each value of a tag and for each venue of a leg."""
        return (*tags_of(self.tags).scopes, *_venue_scopes(self.legs))
