"""What a drift means, and what to do next: the one source of these words, for every face. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from ledger_sizer.model.choices import DriftKind
from ledger_sizer.model.reconciliation import QUANTITY_KINDS, Drift, Finding
from ledger_sizer.model.units import decimal_text, exact_arithmetic, parse_decimal

_HOLD = re.compile(r"the hold (\S+)")
_KEY_ERRORS = ("AuthenticationError", "PermissionDenied", "AccountNotEnabled", "InvalidNonce")
_CENT = Decimal("0.01")

_MEANINGS: dict[DriftKind, str] = {
    "fetch_failed": "The account, or half of it, was not fetched, or the answer is too old. What is unknown is not "
    "judged, and known drifts there stay.",
    "unknown_position": "The exchange shows what the ledger does not have.",
    "quantity_differs": "Both have it, in different quantities: a lost fill, a lost close, or a trade by hand.",
    "missing_position": "The ledger has it and the exchange does not: closed by hand, liquidated, or the answer to a "
    "close was lost. It counts until it is decided.",
    "side_flipped": "The exchange shows the other side of what the ledger has, most often because a close was sent "
    "twice. Both sides count until it is decided.",
    "legs_unequal": "The two sides of a hedge differ: what is not hedged is market risk.",
    "balance_below_holds": "The free quote balance is less than what the holds of orders to come need.",
    "late_fill": "The exchange shows more than the ledger has, and a hold explains it whose orders filled late, or "
    "whose fate is unknown.",
    "unreadable": "The exchange lists something there that cannot be read, so this market is unknown and not judged.",
    "interest": "Coins grew as slowly as by interest: earned by lent coins, or owed for borrowed ones.",
    "expired_hold": "A hold expired without a fill. The bot that asked for it may have stopped.",
}


_TO_DO: Mapping[DriftKind, str] = {
    "unknown_position": "adopt it, close it, or ignore it if it is not the bots'",
    "quantity_differs": "confirm or release what the bot did not tell, or adopt what is there",
    "missing_position": "find out whether it was closed by hand or liquidated, then adopt the absence; then look at"
    " the other leg",
    "side_flipped": "find out whether a close was sent twice, then adopt the new side or close it",
    "legs_unequal": "one side is at the market's risk: hedge or close the rest, or ignore it if it is meant so",
    "balance_below_holds": "top up, or release holds",
    "late_fill": "let its bot confirm it, or adopt it, which does the same",
    "unreadable": "look at that row at the exchange: nothing there is judged meanwhile",
    "interest": "nothing, if it is interest; otherwise adopt it, or ignore it",
    "expired_hold": "check whether its bot runs",
}


def naming_holds(text: str, names: Iterable[str]) -> str:
    """Return the detail of a finding that these holds explain."""
    return f"{text}; {', '.join(f'the hold {name}' for name in names)} may have filled"


def holds_named(detail: str) -> list[str]:
    """Return the names of the holds that explain a late fill, from its detail."""
    return [name.rstrip(",") for name in _HOLD.findall(detail)]


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that can be done next. command: to copy into a shell; None where no command does it."""

    words: str
    command: str | None = None


def meaning(drift: Drift | Finding) -> str:
    """Return what its kind means."""
    return _MEANINGS.get(drift.kind, f"{drift.kind.replace('_', ' ').capitalize()}.")


def to_do(drift: Drift) -> str:
    """Return what to do about a drift of its kind, in one line of an alert."""
    return _TO_DO.get(drift.kind, f"see ledger-sizer drifts show {drift.id}")


def usd_text(usd: Decimal | None) -> str:
    """Return an amount to the cent; empty for none."""
    with exact_arithmetic():
        return "" if usd is None else f"{usd.quantize(_CENT):,}"


def hint(drift: Drift) -> str:
    """Return what to do next in a few words: mostly a command without the leading `ledger-sizer`; empty if nothing."""
    if drift.state == "resolved":
        return ""
    if drift.state == "acknowledged":
        return f"ignored by {drift.actor}: {drift.reason}"
    if drift.requested:
        return "close it at the exchange"
    match drift.kind:
        case "fetch_failed":
            return f"check {'key of ' if _is_of_the_key(drift) else ''}{_account(drift)}"
        case "balance_below_holds":
            return f"top up {_account(drift)}"
        case "legs_unequal":
            return f"hedge or close {drift.subject}"
        case "expired_hold":
            return f"explain {drift.subject}"
        case "unreadable":
            return f"look at {_account(drift)}"
        case "late_fill" if holds := holds_named(drift.detail):
            return f"confirm {holds[0]}"
        case "side_flipped" if drift.excess <= 0:
            return "adopt the other side"
    if drift.excess > 0 and drift.price is None:
        return f"drifts ignore {drift.id}"
    return f"drifts adopt {drift.id}" if _can_adopt(drift) else f"drifts show {drift.id}"


def next_steps(drift: Drift) -> tuple[Step, ...]:
    """Return what can be done about it now, the most likely first; nothing for one that is resolved."""
    if drift.state == "resolved":
        return ()
    steps = [*(_at_the_desk(drift) if drift.live else ()), *_decisions(drift)]
    if drift.live and drift.kind in QUANTITY_KINDS:
        steps.insert(0, Step("ask the exchange what explains it", _command(f"drifts show {drift.id} --activity")))
    if drift.frozen_scope is not None and drift.freezes:
        steps += [
            Step(
                f"grant again in {scope} although it is not decided",
                _command(f"thaw -p {drift.portfolio} --scope {scope} --note 'TEXT'"),
            )
            for scope in drift.frozen_scopes
        ]
    return tuple(steps)


def applies(action: str, drift: Drift) -> bool:
    """Whether to offer an action for a drift. False for those without an effect, which would be refused."""
    match action:
        case "adopt":
            return drift.state != "resolved" and _can_adopt(drift)
        case "close":
            return drift.live and drift.excess > 0 and not drift.requested
    return drift.live


def difference_words(drift: Drift | Finding) -> str:
    """Return the difference in coins and USD, such as `0.02 more at the exchange, 1,000.00 USD at 50000`."""
    difference, price, usd = drift.difference, drift.price, drift.usd
    if difference is None:
        return ""
    size = decimal_text(abs(difference))
    if drift.kind == "balance_below_holds":
        return f"{usd_text(usd)} USD are missing"
    if drift.kind == "legs_unequal":
        words = f"{size} not hedged"
    else:
        words = f"{size} {'more' if difference > 0 else 'less'} at the exchange"
    return f"{words}, {usd_text(usd)} USD at {decimal_text(price)}" if price is not None else f"{words}, no price known"


def closing_words(details: Mapping[str, str]) -> str:
    """Return what the details of a close request ask for, in words; empty for other details."""
    needed = ("order_side", "quantity", "symbol", "venue", "account")
    if any(name not in details for name in needed):
        return ""
    side, quantity, symbol, venue, account = (details[name] for name in needed)
    usd = f", {usd_text(parse_decimal(details['usd']))} USD" if "usd" in details else ""
    return f"{side} {quantity} {symbol} at {venue}/{account}{usd}"


def _at_the_desk(drift: Drift) -> list[Step]:
    """Return what to do besides a decision about the drift."""
    account = _account(drift)
    match drift.kind:
        case "fetch_failed":
            what = "API key, its rights and its IP list" if _is_of_the_key(drift) else "key, network and rate limit"
            return [Step(f"check {what} of {account}, then compare again", _command("reconcile"))]
        case "balance_below_holds":
            return [
                Step(f"top up the free balance of {account}"),
                Step("or release holds", _command(f"positions --state held -p {drift.portfolio}")),
            ]
        case "legs_unequal":
            return [Step(f"hedge or close the rest of {drift.subject} at the exchange")]
        case "unreadable":
            return [Step(f"look at {drift.subject} of {account} at the exchange: {drift.detail}")]
        case "expired_hold":
            return [Step("see what asked for it, and whether its bot runs", _command(f"explain {drift.subject}"))]
        case "late_fill":
            coins = abs(drift.difference or Decimal(0))
            price = "PRICE" if drift.price is None else decimal_text(drift.price)
            return [
                Step(
                    f"let its bot confirm what filled of {hold}, or do it",
                    _command(f"confirm {hold} --quantity {decimal_text(coins)} --price {price}"),
                )
                for hold in holds_named(drift.detail)
            ]
        case "missing_position" | "quantity_differs" | "side_flipped" if drift.shortfall:
            return [
                Step("if its bot still has to tell of the close, let it, then compare again", _command("reconcile"))
            ]
    return []


def _decisions(drift: Drift) -> list[Step]:
    steps = []
    if applies("adopt", drift):
        price = " --price PRICE" if drift.excess > 0 and drift.price is None else ""
        words = "let the ledger say what the exchange shows"
        if drift.kind == "side_flipped" and drift.excess <= 0:
            words = "give up this side; adopting the other side does both"
        steps.append(Step(words, _command(f"drifts adopt {drift.id} --reason 'TEXT'{price}")))
    if applies("close", drift):
        steps.append(
            Step("ask whoever trades to close it at the exchange", _command(f"drifts close {drift.id} --reason 'TEXT'"))
        )
    if drift.live and drift.kind in QUANTITY_KINDS and not drift.market.is_swap and not drift.shortfall:
        command = _command(f"drifts ignore {drift.id} --asset --reason 'TEXT'")
        steps.append(Step("say once that this asset of this account is not the bots', whatever its size", command))
    if applies("ignore", drift):
        steps.append(
            Step("let it be as it is, until it changes", _command(f"drifts ignore {drift.id} --reason 'TEXT'"))
        )
    return steps


def _can_adopt(drift: Drift) -> bool:
    return drift.excess > 0 or drift.shortfall > 0 or (drift.kind == "late_fill" and bool(holds_named(drift.detail)))


def _is_of_the_key(drift: Drift) -> bool:
    return any(name in drift.detail for name in _KEY_ERRORS)


def _account(drift: Drift | Finding) -> str:
    market = drift.market
    return f"{market.venue}/{market.account}" if market.account else market.venue


def _command(arguments: str) -> str:
    return f"ledger-sizer {arguments}"
