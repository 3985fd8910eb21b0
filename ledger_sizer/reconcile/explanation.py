"""Says what happened at the exchange that explains a drift, and whether it explains all of it. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

from ledger_sizer.model.account_activity import AccountEvent, Activity, DriftActivity
from ledger_sizer.model.reconciliation import QUOTE, Drift
from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import decimal_text, exact_arithmetic

_ZERO = Decimal(0)
_TOLERANCE = Decimal("0.002")
"""Relative difference of two quantities that are taken for the same: bots tell fills without their fees."""

_CLOCK_US = 2_000_000
"""The exchange's clock and ours may differ by this much."""


@dataclass(frozen=True, slots=True)
class _Group:
    """The events of one order, or one other event. change: coins."""

    events: tuple[AccountEvent, ...]
    change: Decimal

    @property
    def kind(self) -> tuple[str, str, str]:
        """What it is told as."""
        first = self.events[0]
        return (first.kind, first.side, first.detail)


def explain_drift(drift: Drift, activity: Activity, moves: Sequence[Decimal], until_us: int) -> DriftActivity:
    """Compare what happened at the exchange with the difference.

    moves: what fills and closes that bots told did to the ledger in that market meanwhile, coins, bought above 0.
    until_us: when the difference was measured; what happened later does not belong to it.
    """
    with exact_arithmetic():
        sign = -1 if drift.side == "short" else 1
        known = drift.venue_quantity is not None and drift.ledger_quantity is not None and drift.subject != QUOTE
        difference = sign * ((drift.venue_quantity or _ZERO) - (drift.ledger_quantity or _ZERO)) if known else _ZERO
        groups = _groups(activity.events, drift.market.base, until_us)
        untold, told, missing = _without_told(groups, moves)
        unexplained: Decimal | None = None
        if not known:
            chosen, text = groups, _listed(groups, activity)
        else:
            chosen = _explaining(untold, difference + missing)
            unexplained = difference + missing - sum((one.change for one in chosen), _ZERO)
            if abs(unexplained) <= _TOLERANCE * abs(difference):
                unexplained = _ZERO
            text = _explained(drift, chosen, missing, unexplained, activity)
    return DriftActivity(
        drift.id, from_us(activity.since_us), from_us(until_us), difference, told, unexplained, text, activity.events,
        activity.problems,
    )  # fmt: skip


def _groups(events: Iterable[AccountEvent], coin: str, until_us: int) -> list[_Group]:
    found: dict[tuple[str, ...], list[AccountEvent]] = {}
    for event in events:
        if event.kind != "funding" and not event.elsewhere and event.happened_us <= until_us + _CLOCK_US:
            key = (event.kind, event.side, event.detail, event.order or f"{event.id} {event.happened_us}")
            found.setdefault(key, []).append(event)
    return [_Group(tuple(one), sum((event.change(coin) for event in one), _ZERO)) for one in found.values()]


def _without_told(groups: list[_Group], moves: Sequence[Decimal]) -> tuple[list[_Group], Decimal, Decimal]:
    """Take out the orders that the ledger knows. Returns the rest, what was taken out, and moves that no order fits."""
    rest, told, missing = list(groups), _ZERO, _ZERO
    for move in moves:
        run = next((run for run in _runs(rest, move) if _same(sum((one.change for one in run), _ZERO), move)), None)
        if run is None:
            missing += move
            continue
        told += move
        rest = [one for one in rest if not any(one is other for other in run)]
    return rest, told, missing


def _runs(groups: list[_Group], move: Decimal) -> Iterable[list[_Group]]:
    """Yield single orders of the move's direction, then several in a row."""
    alike = [one for one in groups if (one.change > 0) == (move > 0)]
    for length in range(1, min(len(alike), 10) + 1):
        for start in range(len(alike) - length + 1):
            yield alike[start : start + length]


def _explaining(untold: list[_Group], difference: Decimal) -> list[_Group]:
    """Return the events whose sum is the difference: all of them, those of one kind, or one; else all of them."""
    kinds = {one.kind: None for one in untold}
    candidates = [
        untold,
        *([one for one in untold if one.kind == kind] for kind in kinds),
        *([one] for one in reversed(untold)),
    ]
    fits = (one for one in candidates if one and _same(sum((group.change for group in one), _ZERO), difference))
    return next(fits, untold)


def _same(one: Decimal, other: Decimal) -> bool:
    return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))


# --- words -----------------------------------------------------------------------------------------


def _explained(
    drift: Drift, chosen: list[_Group], missing: Decimal, unexplained: Decimal, activity: Activity
) -> str:  # fmt: skip
    coin = drift.market.base
    words = _phrases(chosen, coin)
    if missing:
        verb = "bought" if missing > 0 else "sold"
        words.append(f"the ledger was told that {_coins(missing)} {coin} were {verb}, which the exchange does not show")
    if not words:
        hint = f" ({'; '.join(activity.problems)})" if activity.problems else ""
        return f"nothing that the exchange tells of explains it since {_time(activity.since_us)}{hint}"
    by_whom = ", not told by any bot" if any(one.events[0].kind in ("fill", "liquidation") for one in chosen) else ""
    text = "; ".join(words) + (by_whom if not missing else "")
    return text if not unexplained else f"{text}; {_coins(unexplained)} {coin} of the difference stay unexplained"


def _listed(groups: list[_Group], activity: Activity) -> str:
    words = _phrases(groups, "")
    for asset in sorted({event.subject for event in activity.events if event.kind == "funding"}):
        paid = [event for event in activity.events if event.kind == "funding" and event.subject == asset]
        total = sum((event.change("") for event in paid), _ZERO)
        verb = "received" if total > 0 else "paid"
        words.append(f"{verb} {_coins(total)} {asset} funding in {_count(len(paid), 'payment')}")
    return "; ".join(words) or f"nothing that the exchange tells of since {_time(activity.since_us)}"


def _phrases(groups: list[_Group], coin: str) -> list[str]:
    by_kind: dict[tuple[str, str, str], list[AccountEvent]] = {}
    for group in groups:
        by_kind.setdefault(group.kind, []).extend(group.events)
    return [_phrase(events, coin or events[0].subject) for events in by_kind.values()]


def _phrase(events: list[AccountEvent], coin: str) -> str:
    first = events[0]
    quantity = sum((event.quantity for event in events), _ZERO)
    times = sorted({_time(event.happened_us) for event in events})
    when = f"at {times[0]}" if len(times) == 1 else f"between {times[0]} and {times[-1]}"
    amount = f"{_coins(quantity)} {coin}"
    if first.kind in ("fill", "liquidation"):
        verb = "bought" if first.side == "buy" else "sold"
        lead = "liquidated: " if first.kind == "liquidation" else f"{first.detail}: " if first.detail else ""
        return f"{lead}{verb} {amount}{_price(events, quantity)} in {_count(len(events), 'fill')} {when}"
    if first.kind == "transfer":
        return f"transferred {amount} {first.side} ({first.detail}) {when}"
    return f"{'deposited' if first.kind == 'deposit' else 'withdrew'} {amount} {when}"


def _price(events: list[AccountEvent], quantity: Decimal) -> str:
    if not quantity or any(event.price is None for event in events):
        return ""
    average = sum((event.quantity * (event.price or _ZERO) for event in events), _ZERO) / quantity
    # Eight digits are enough to find it at the exchange.
    digits = average.quantize(Decimal(1).scaleb(average.adjusted() - 7), ROUND_HALF_EVEN) if average else average
    whole, _, fraction = decimal_text(digits).partition(".")
    return f" at {int(whole):,}{f'.{fraction}' if fraction else ''}"


def _coins(quantity: Decimal) -> str:
    return decimal_text(abs(quantity))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _time(us: int) -> str:
    return f"{from_us(us):%m-%d %H:%M} UTC"
