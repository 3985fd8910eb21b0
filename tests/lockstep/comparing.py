"""Sends groups to a ledger, and compares its answers and positions with the model's."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from itertools import cycle
from typing import Any

from ledger_sizer import Decision, Ledger, LedgerError, Leg, Position
from ledger_sizer.model.caller import EMBEDDED, Caller, calling_as
from ledger_sizer.model.decisions import Result
from ledger_sizer.model.fills import Fills
from ledger_sizer.model.tags import tags_of
from tests.lockstep import random_commands
from tests.lockstep.model import Group, PortfolioModel, Reply
from tests.lockstep.model_answers import Answer, Refusal
from tests.lockstep.model_positions import NEVER, Holding, LegHolding, pairs_of, values_of

COMPARED_FIGURES = (
    "budget", "quantity", "fraction", "raw_budget", "headroom_before", "exposure_before", "exposure_after",
)  # fmt: skip
COMPARED_FACTS = ("seq", "reason", "binding", "expires_at", "decided_at", "replayed")

Given = list[Result] | LedgerError


def same_legs(one: Holding, market: dict[str, Any]) -> bool:
    rules = [(plan.instrument, plan.side) for plan in market.get("legs", ())]
    if "spot_instrument" in market:
        rules = [(market["spot_instrument"], "buy"), (market["perp_instrument"], "sell")]
    asked = sorted((rule.symbol, side) for rule, side in rules)
    return asked == sorted((leg.symbol, leg.side) for leg in one.legs)


def legs_that_filled(one: Holding | None, which: str | None, quantity: Decimal) -> list[Leg] | None:
    """Return legs of the position, or one elsewhere, that filled."""
    if which is None:
        return None
    if which == "elsewhere" or one is None or not one.legs:
        return [*random_commands.LEGS]
    legs = one.legs if which == "all" else one.legs[:1] if which == "first" else one.legs[-1:]
    prices = cycle([None, Decimal("99.5")])
    return [
        Leg(leg.venue, leg.symbol, leg.kind, leg.side, quantity, price, account=leg.account)  # type: ignore[arg-type]
        for leg, price in zip(legs, prices, strict=False)
    ]


def caller_of(group: Group) -> Caller:
    """Return the sender of a group: keys are everybody's here, whatever tags an API key is bound to."""
    bound = {name: values_of(group.bound, name) for name, _ in group.bound}
    return EMBEDDED._replace(tags=tags_of(bound)) if bound else EMBEDDED


def answers_of(ledger: Ledger, groups: Sequence[Group]) -> list[Given]:
    if len(groups) > 1:
        return asyncio.run(_answers_at_once(ledger, groups))
    (group,) = groups
    try:
        with calling_as(caller_of(group)):
            if len(group.commands) == 1 and not group.atomic:
                return [[ledger.run(group.commands[0])]]
            return [ledger.submit(group.commands, atomic=group.atomic)]
    except LedgerError as error:
        return [[error] if not group.atomic else error]


async def _answers_at_once(ledger: Ledger, groups: Sequence[Group]) -> list[Given]:
    """Callers of one loop tick reach the writer together, as one batch, in order."""
    pending = []
    for group in groups:
        with calling_as(caller_of(group)):
            pending.append(asyncio.create_task(ledger.submit_async(group.commands, atomic=group.atomic)))
    answers = await asyncio.gather(*pending, return_exceptions=True)
    for answer in answers:
        assert isinstance(answer, list | LedgerError), answer
    return answers  # type: ignore[return-value]


def answers_equal(kind: str, group: Group, given: Given, replies: Sequence[Reply]) -> None:
    if isinstance(given, LedgerError):
        refusals = [one for one in replies if isinstance(one, Refusal)]
        assert Refusal(given.code) == next(iter(refusals), None), f"{kind}: {given!r}"
        return
    for command, ours, expected in zip(group.commands, given, replies, strict=True):
        assert as_reply(ours) == expected, f"{kind}: {command}"


def as_reply(given: Result) -> Reply:
    if isinstance(given, LedgerError):
        return Refusal(given.code)
    exact = {name: fraction_of(getattr(given, name)) for name in COMPARED_FIGURES}
    plain = {name: getattr(given, name) for name in COMPARED_FACTS}
    return Answer(given.command, given.outcome, number=given.record.position, **exact, **plain)  # type: ignore[arg-type]


def fraction_of(value: Decimal | None) -> Fraction | None:
    return None if value is None else Fraction(value)


def _as_holding(one: Position) -> Holding:
    fills = one.fills or Fills()
    legs = tuple(
        LegHolding(
            leg.venue, leg.symbol, leg.kind, leg.side, leg.account, filled=Fraction(leg.filled),
            cost=Fraction(leg.cost), value=None if leg.fills is None else fraction_of(leg.fills.value),
            unfilled=Fraction(leg.unfilled), unfilled_usd=Fraction(0 if leg.fills is None else leg.fills.unfilled_usd),
        )
        for leg in one.legs
    )  # fmt: skip
    return Holding(
        one.number,
        one.state,
        pairs_of(one.tags.items()),
        held=Fraction(one.held),
        open=Fraction(one.open),
        quantity=fraction_of(one.quantity),
        cost=Fraction(one.cost),
        value=fraction_of(fills.value),
        unfilled=fraction_of(one.unfilled),
        filled=Fraction(one.filled or 0),
        filled_usd=_filled_so_far(one),
        more=fills.more,
        legs=legs,
        expires_at=NEVER if one.until_known else one.expires_at,
        origin=one.origin,
        reference=one.reference,
    )


def holdings_equal(kind: str, positions: Sequence[Position], portfolio: PortfolioModel) -> None:
    """Require that the positions of a ledger, in order, are those of the model."""
    holdings = [one for _, one in sorted(portfolio.positions.items())]
    for ours, theirs in zip(positions, holdings, strict=True):
        given, expected = _comparable(_as_holding(ours)), _comparable(theirs)
        assert given == expected, f"{kind}: {given}, expected {expected}"


def _filled_so_far(one: Position) -> Fraction:
    """Return what all fills cost: as it is kept, or what quantity and price say."""
    if one.fills is not None and one.fills.filled_usd is not None:
        return Fraction(one.fills.filled_usd)
    return Fraction(one.filled or 0) * Fraction(one.price or 0)


def _comparable(one: Holding) -> Holding:
    """Return a position without what no rule reads once it is over, or before it fills."""
    return one if one.live else replace(one, unfilled=None)


def plain(given: Given) -> object:
    """Return a comparable form of an answer: decisions by every field, errors by type and message."""
    if isinstance(given, LedgerError):
        return (type(given), str(given))
    return [one if isinstance(one, Decision) else (type(one), str(one)) for one in given]
