"""The legs that a reservation asks for: of one asset, in markets whose units are known, at prices that agree."""

import re
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import NamedTuple

from ledger_sizer.model.arguments import field_prefix
from ledger_sizer.model.choices import MarketKind, Side
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.instruments import InstrumentInfo
from ledger_sizer.model.legs import LegPlan
from ledger_sizer.model.tags import Tags
from ledger_sizer.model.units import exact_arithmetic, exact_decimal, shown


class Plan(NamedTuple):
    """One leg to be sized. price: USD per coin. fee_rate: of a spot buy, taken in base; None is none."""

    instrument: InstrumentInfo
    side: Side
    kind: MarketKind
    price: Decimal
    fee_rate: Decimal | None
    account: str | None


def pair_plans(
    spot: InstrumentInfo, perp: InstrumentInfo, price: Decimal, spot_fee_rate: Decimal | None
) -> tuple[Plan, ...]:
    """Return the plans of the short form: it buys the first market and sells the second, which must be a contract.

    Raises `InvalidRequest` for two markets that are no hedge.
    """
    _require_pair(spot, perp)
    if spot_fee_rate and spot.kind not in ("spot", None):
        raise InvalidRequest(
            f"spot_fee_rate is for a spot buy, whose fee is taken in coins; {spot.symbol} is a {spot.kind}: leave it "
            "out",
            field="spot_fee_rate",
        )
    first: MarketKind = spot.kind or "spot"
    second: MarketKind = perp.kind or "swap"
    return (
        Plan(spot, "buy", first, price, spot_fee_rate or None, None),
        Plan(perp, "sell", second, price, None, None),
    )


@lru_cache(maxsize=1024)
def _require_pair(spot: InstrumentInfo, perp: InstrumentInfo) -> None:
    if perp.kind == "spot":
        raise InvalidRequest(
            f"perp_instrument is sold and must be a contract, like bybit:BTC/USDT:USDT; {perp.symbol} is a spot "
            "market. To sell coins, give legs=[LegPlan(...), ...]",
            field="perp_instrument",
        )
    if spot.venue is not None and (spot.venue, spot.symbol) == (perp.venue, perp.symbol):
        raise InvalidRequest(
            f"spot_instrument and perp_instrument are both {perp.venue}:{perp.symbol}; to buy and sell one market is "
            "no position",
            field="perp_instrument",
        )
    _require_one_asset(
        [("spot_instrument", spot.symbol, _asset(spot, None, "spot_instrument")),
         ("perp_instrument", perp.symbol, _asset(perp, None, "perp_instrument"))]
    )  # fmt: skip


def leg_plans(legs: Sequence[LegPlan], price: Decimal | None) -> tuple[Plan, ...]:
    """Return the plans of legs whose instruments are trading rules. price: of the legs that have none of their own.

    Raises `InvalidRequest` that names the leg: two assets, a market twice, unknown units, a price that is missing or
    more than twice or less than half of `price`, a fee in base on anything but a spot buy.
    """
    _require_one_asset(
        [(f"legs.{number}", _instrument(leg).symbol, _asset(_instrument(leg), leg.asset, f"legs.{number}.instrument"))
         for number, leg in enumerate(legs)]
    )  # fmt: skip
    plans: list[Plan] = []
    seen: set[tuple[str | None, str, str | None]] = set()
    for number, leg in enumerate(legs):
        instrument, name = _instrument(leg), f"legs.{number}"
        market = (instrument.venue, instrument.symbol, leg.account)
        if market in seen:
            raise InvalidRequest(f"{name}: {instrument.symbol} is a leg already; one leg a market", field=name)
        seen.add(market)
        kind = instrument.kind
        if kind is None:
            raise InvalidRequest(
                f"{name}.instrument: whether {instrument.symbol} is spot, swap or future is not known; give kind=",
                field=f"{name}.instrument.kind",
            )
        if leg.fee_rate and (kind != "spot" or leg.side != "buy"):
            raise InvalidRequest(
                f"{name}.fee_rate is for a spot buy, whose fee is taken in coins; leave it out for a {kind} {leg.side}",
                field=f"{name}.fee_rate",
            )
        plans.append(
            Plan(
                instrument,
                leg.side,
                kind,
                _price(leg, instrument, price, legs[0].price, name),
                leg.fee_rate or None,
                leg.account,
            )
        )
    return tuple(plans)


def _instrument(leg: LegPlan) -> InstrumentInfo:
    assert isinstance(leg.instrument, InstrumentInfo), "names are resolved before"
    return leg.instrument


def _price(
    leg: LegPlan, instrument: InstrumentInfo, price: Decimal | None, first: Decimal | None, name: str
) -> Decimal:
    """Return the price of a leg: its own, else `price`. first: of the first leg, compared where there is no other."""
    if leg.price is None:
        if price is None:
            raise InvalidRequest(
                f"price is missing: {name} has none of its own, and with legs the budget becomes a quantity",
                field="price",
            )
        return price
    near, whose = (price, "the price") if price is not None else (first, "that of legs.0,")
    if near is not None and not _near(near, leg.price):
        raise InvalidRequest(
            f"{name}.price {shown(leg.price)} is not near {whose} {shown(near)}: both are USD per coin, also where "
            f"the market counts in other units ({instrument.symbol} has multiplier {shown(instrument.multiplier)} and "
            f"contract_size {shown(instrument.contract_size)})",
            field=f"{name}.price",
        )
    return leg.price


def _near(price: Decimal, other: Decimal) -> bool:
    """Whether neither price is more than twice the other."""
    with exact_arithmetic():
        return price <= 2 * other and other <= 2 * price


def _asset(instrument: InstrumentInfo, asset: str | None, name: str) -> str | None:
    """Return the coin of a market, None where its name does not say it. Raises unless its units are known."""
    with field_prefix(name):
        if asset is not None and asset == instrument.base:
            instrument.require_linear()  # the caller says that the name has no factor
        else:
            instrument.require_usable()
        with exact_arithmetic():
            exact_decimal(instrument.qty_step * instrument.unit, "qty_step")
    return asset or instrument.asset


def _require_one_asset(legs: Sequence[tuple[str, str, str | None]]) -> None:
    known = [leg for leg in legs if leg[2] is not None]
    for name, symbol, asset in known[1:]:
        if asset != known[0][2]:
            raise InvalidRequest(
                f"{symbol} is of {asset} and {known[0][1]} of {known[0][2]}: the legs of a position are of one asset. "
                "Where two names are one coin, say so with LegPlan(..., asset=)",
                field=name,
            )


_ENDS = re.compile(r"[/:_-]")
_QUOTES = ("", "USD", "USDT", "USDC", "PERP")
"""What may follow an asset in a `symbol` tag: BTC, BTC/USDT, BTCUSDT and BTC-PERP are of BTC."""


# --- tags --------------------------------------------------------------------------------------------------------


def tags_with_legs(tags: Tags, plans: Sequence[Plan], legs: Sequence[LegPlan]) -> Tags:
    """Return the tags with `venue` and `symbol` filled in from the legs, where they are not given.

    Raises `InvalidRequest` for a `venue` that lacks a leg's, or a `symbol` of another asset.
    """
    venues = tuple([venue for plan in plans if (venue := plan.instrument.venue) is not None])
    asset = next((leg.asset for leg in legs if leg.asset), None)
    bases = tuple([base for plan in plans if (base := plan.instrument.base) is not None])
    asset = asset or next((plan.instrument.asset for plan in plans if plan.instrument.asset), None)
    return _filled_in(tags, venues, asset, bases)


@lru_cache(maxsize=8192)
def _filled_in(tags: Tags, venues: tuple[str, ...], asset: str | None, bases: tuple[str, ...]) -> Tags:
    given = tags.values_of("venue")
    if not given:
        tags = tags.having("venue", venues) if venues else tags
    elif missing := sorted({*venues} - {*given}):
        raise InvalidRequest(
            f"tags.venue is {', '.join(given)}, and a leg is at {', '.join(missing)}; leave venue out, and it is "
            "filled in from the legs",
            field="tags.venue",
        )
    if asset is None:
        return tags
    symbols = tags.values_of("symbol")
    if not symbols:
        return tags.having("symbol", (asset,))
    for symbol in symbols:
        head = _ENDS.split(symbol.upper())[0]
        if not any(head.removeprefix(name.upper()) in _QUOTES for name in (asset, *bases)):
            raise InvalidRequest(
                f"tags.symbol is {symbol}, and the legs are of {asset}; leave symbol out, and it is filled in",
                field="tags.symbol",
            )
    return tags
