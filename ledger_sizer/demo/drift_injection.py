"""Somebody who does behind the ledger's back one of each thing that reconciliation is there to find."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import count, cycle

from ledger_sizer.client import LedgerClient
from ledger_sizer.demo.bots import PORTFOLIO
from ledger_sizer.demo.venue_bot import KEPT, NAME, VENUE, perp_of, spot_of
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Position
from ledger_sizer.model.reconciliation import QUOTE
from ledger_sizer.paper import PaperControl

CONFIRMATIONS = 2
EXPIRED_SECONDS = 8
"""How long the reconciliation speaks of an expired hold."""
FIND_SECONDS_MAX = 45.0
_REST_SECONDS = 0.5
_TRIES_MAX = 10
_MONEY_LEFT = Decimal(200)
"""USDT that a thief leaves behind: less than what he waits to see held."""


class NotPossibleNow(Exception):
    """It cannot be done at the moment, because it needs a position or a hold that is not to be had."""


class ExchangeActions:
    """What can be done to the account at the exchange, and the commands that belong to it."""

    def __init__(self, client: LedgerClient, venue: PaperControl) -> None:
        self.client = client
        self.venue = venue
        self.held: Decision | None = None
        """The hold that the present doing is about, or what came of it: a late fill is a position of its own."""
        self.taken = Decimal(0)
        """USDT that were taken."""
        self._numbers = count(1)

    @property
    def kept(self) -> Position:
        """The trader's position that stays. Raises `NotPossibleNow` before it stands."""
        tags = {"strategy": NAME, "symbol": KEPT}
        for position in self.client.positions(PORTFOLIO, state="open", tags=tags):
            return position
        raise NotPossibleNow

    @property
    def quantity(self) -> Decimal:
        """Of that position, base units."""
        return self.kept.quantity or Decimal(0)

    def price(self, coin: str) -> Decimal:
        """USDT per base unit."""
        return Decimal(self.venue.state()["prices"][coin])

    def hold(self, coin: str, *, ttl_seconds: int, score: str, least: Decimal = Decimal(0)) -> Decision:
        """Reserve for a coin, and keep the grant. Raises `NotPossibleNow` where less than `least` USD is to be had."""
        tags = {"venue": VENUE, "symbol": coin, "strategy": "meddler"}
        held = self.client.reserve(
            key=f"{self._key()}/hold", portfolio=PORTFOLIO, tags=tags,
            signal_score=Decimal(score), price=self.price(coin), ttl_seconds=ttl_seconds,
            spot_instrument=f"{VENUE}:{spot_of(coin)}", perp_instrument=f"{VENUE}:{perp_of(coin)}",
        )  # fmt: skip
        if not held.granted:
            raise NotPossibleNow
        self.held = held
        if (held.budget or 0) < least:
            self.let_go()
            raise NotPossibleNow
        return held

    def let_go(self) -> None:
        """Release what is held, or what came of it."""
        assert self.held is not None, "there is a hold"
        self.client.release(key=f"{self._key()}/exit", position_id=str(self.held.position_id))
        self.held = None

    def order_fills(self, coin: str, held: Decision) -> None:
        """Both sides of a hold fill at the exchange."""
        assert held.quantity is not None, "it was granted with rules"
        self.venue.deposit(coin, held.quantity)
        self.venue.open(perp_of(coin), "short", held.quantity)

    def confirm_and_close(self, coin: str) -> None:
        """Tell the ledger of that fill, late, and leave the position again on both sides."""
        held = self.held
        assert held is not None and held.quantity is not None, "there was a hold with rules"
        price = self.price(coin)
        self.held = self.client.confirm(
            key=f"{self._key()}/fill", position_id=str(held.position_id), quantity=held.quantity, price=price,
            spot_price=price,
        )  # fmt: skip
        self.venue.close(perp_of(coin))
        self.venue.deposit(coin, -held.quantity)
        self.let_go()

    def take_money(self) -> None:
        """Withdraw nearly all USDT."""
        wallet = self.venue.state()["accounts"][self.venue.api_key]["wallets"]["spot"]
        self.taken = Decimal(wallet["USDT"]) - _MONEY_LEFT
        self.venue.deposit("USDT", -self.taken)

    def bring_it_back(self) -> None:
        """Undo `take_money`, and let go of the hold."""
        self.venue.deposit("USDT", self.taken)
        self.let_go()

    def _key(self) -> str:
        return f"meddler/{next(self._numbers)}"


@dataclass(frozen=True, slots=True)
class Injection:
    """Something that somebody does at the exchange behind the ledger's back.

    kind: of the drift that it makes. do: returns the subject of that drift, or raises `NotPossibleNow`.
    """

    what: str
    kind: str
    do: Callable[[ExchangeActions], str]
    undo: Callable[[ExchangeActions], None]


def _at_the_perp(
    act: Callable[[ExchangeActions, str], None], subject: str = perp_of(KEPT)
) -> Callable[[ExchangeActions], str]:
    """Something done to the perpetual of the position that the trader keeps."""

    def do(hands: ExchangeActions) -> str:
        if not hands.quantity:
            raise NotPossibleNow
        act(hands, perp_of(KEPT))
        return subject

    return do


def _bought_by_hand(hands: ExchangeActions) -> str:
    hands.venue.open(perp_of("SOL"), "long", Decimal(2))
    return perp_of("SOL")


def _without_rows(hands: ExchangeActions) -> str:
    hands.venue.fault("hollow", "position", times=None)
    return "account"


def _filled_late(hands: ExchangeActions) -> str:
    hands.order_fills("SOL", hands.hold("SOL", ttl_seconds=1, score="0.3"))
    return "SOL"


def _forgotten(hands: ExchangeActions) -> str:
    return str(hands.hold("XRP", ttl_seconds=1, score="0.3").position_id)


def _robbed(hands: ExchangeActions) -> str:
    hands.hold("XRP", ttl_seconds=300, score="1", least=_MONEY_LEFT)
    hands.take_money()
    return QUOTE


_A_LITTLE = Decimal("0.05")

MEDDLING = (
    Injection(
        "2 SOL bought by hand", "unknown_position", _bought_by_hand,
        lambda hands: hands.venue.close(perp_of("SOL")),
    ),
    Injection(
        "the exchange answers without its rows", "fetch_failed", _without_rows,
        lambda hands: hands.venue.clear_faults(),
    ),
    Injection(
        f"{_A_LITTLE} {KEPT} more sold by hand", "quantity_differs",
        _at_the_perp(lambda hands, perp: hands.venue.open(perp, "short", _A_LITTLE)),
        lambda hands: hands.venue.close(perp_of(KEPT), _A_LITTLE),
    ),
    Injection(
        "an order fills after its hold is over", "late_fill", _filled_late,
        lambda hands: hands.confirm_and_close("SOL"),
    ),
    Injection(
        f"the {KEPT} short is liquidated", "missing_position",
        _at_the_perp(lambda hands, perp: hands.venue.liquidate(perp)),
        lambda hands: hands.venue.open(perp_of(KEPT), "short", hands.quantity),
    ),
    Injection(
        f"the {KEPT} short is turned into a long", "side_flipped",
        _at_the_perp(lambda hands, perp: hands.venue.flip(perp)),
        lambda hands: hands.venue.flip(perp_of(KEPT)),
    ),
    Injection(
        f"{_A_LITTLE} {KEPT} of the short closed by hand", "legs_unequal",
        _at_the_perp(lambda hands, perp: hands.venue.close(perp, _A_LITTLE), subject=KEPT),
        lambda hands: hands.venue.open(perp_of(KEPT), "short", _A_LITTLE),
    ),
    Injection(
        "the money for a hold is withdrawn", "balance_below_holds", _robbed, lambda hands: hands.bring_it_back()
    ),
    Injection("a bot forgets its hold", "expired_hold", _forgotten, lambda _: None),
)  # fmt: skip
"""One of every kind of drift."""


@dataclass(slots=True)
class InjectionResult:
    """One meddling and what the reconciliation made of it.

    drift: its number, once confirmed. cleared: once over. companions: drifts of the same coin that came along, as a
    liquidated short is not only missing but leaves the other side alone.
    """

    what: str
    kind: str
    subject: str
    drift: int | None = None
    cleared: bool = False
    companions: set[int] = field(default_factory=set)


def base_of(subject: str) -> str:
    """The coin that a drift's subject is about."""
    return subject.partition("/")[0]


class DriftInjector:
    """Does one thing after the other, each undone as soon as it was found. Call `tick` now and then."""

    def __init__(self, client: LedgerClient, venue: PaperControl) -> None:
        self.injected: list[InjectionResult] = []
        self._client = client
        self._hands = ExchangeActions(client, venue)
        self._turns = cycle(MEDDLING)
        self._next = next(self._turns)
        self._tries = 0
        self._now: Injection | None = None
        self._rests_until = 0.0

    @property
    def doing(self) -> str:
        """What is under way, in words."""
        if self._now is None:
            return "quiet"
        return f"{self._now.what}: {'confirmed' if self.injected[-1].drift else 'not found yet'}"

    def tick(self, *, more: bool = True) -> bool:
        """Do what there is to do now; True while something is under way. more: whether to begin anything new."""
        if self._now is None:
            if more and time.monotonic() >= self._rests_until and (self.injected or self._agreed()):
                self._begin()
        else:
            self._look_at(self._now, self.injected[-1])
        return self._now is not None

    def _agreed(self) -> bool:
        """Whether a trade stood on both sides: before that, there is nothing to meddle with."""
        return any(run.found.get("agrees") for run in self._client.reconciliations(PORTFOLIO, limit=20))

    def _begin(self) -> None:
        chosen = self._next
        try:
            subject = chosen.do(self._hands)
        except NotPossibleNow:
            self._tries += 1
            self._rests_until = time.monotonic() + 2 * _REST_SECONDS
            if self._tries >= _TRIES_MAX:
                self._next, self._tries = next(self._turns), 0
            return
        self.injected.append(InjectionResult(chosen.what, chosen.kind, subject))
        self._now, self._next, self._tries = chosen, next(self._turns), 0

    def _look_at(self, now: Injection, injected: InjectionResult) -> None:
        live = {drift.id: drift for drift in self._client.drifts(PORTFOLIO, state="live")}
        coin = base_of(injected.subject)
        injected.companions.update(number for number, drift in live.items() if base_of(drift.subject) == coin)
        if injected.drift is not None:
            if injected.drift not in live:
                injected.cleared = True
                self._now, self._rests_until = None, time.monotonic() + _REST_SECONDS
            return
        wanted = (injected.kind, injected.subject, "confirmed")
        injected.drift = next((d.id for d in live.values() if (d.kind, d.subject, d.state) == wanted), None)
        if injected.drift is not None:
            now.undo(self._hands)

    def finish(self) -> None:
        """See what is under way to its end, and one thing at least, within `FIND_SECONDS_MAX`."""
        deadline = time.monotonic() + FIND_SECONDS_MAX
        while (self.tick(more=not self.injected) or not self.injected) and time.monotonic() < deadline:
            time.sleep(0.1)
