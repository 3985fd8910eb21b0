"""Injects drift: changes the account at the paper venue without the ledger, once for each kind of drift."""

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
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper import PaperControl

CONFIRMATIONS = 2
EXPIRED_SECONDS = 8
"""How long the reconciliation reports an expired hold."""
FIND_SECONDS_MAX = 45.0
_PAUSE_SECONDS = 0.5
_ATTEMPTS_MAX = 10
_USDT_LEFT = Decimal(200)
"""USDT that a withdrawal leaves: less than the hold it leaves without funds."""


class NotPossibleNow(Exception):
    """The injection needs a position or a hold that does not exist at present."""


class ExchangeActions:
    """Actions on the account at the exchange, and the commands to the ledger that go with them."""

    def __init__(self, client: LedgerClient, venue: PaperControl) -> None:
        self.client = client
        self.venue = venue
        self.current_hold: Decision | None = None
        """The last decision about the hold of the present injection; its position id changes with a late fill."""
        self.withdrawn_usdt = Decimal(0)
        """USDT that `withdraw_usdt` took."""
        self._numbers = count(1)

    @property
    def kept_position(self) -> Position:
        """The position that the venue bot keeps. Raises `NotPossibleNow` before it is open."""
        tags = {"strategy": NAME, "symbol": KEPT}
        for position in self.client.positions(PORTFOLIO, state="open", tags=tags):
            return position
        raise NotPossibleNow

    @property
    def kept_quantity(self) -> Decimal:
        """Its quantity, base units."""
        return self.kept_position.quantity or Decimal(0)

    def price(self, coin: str) -> Decimal:
        """USDT per base unit."""
        return Decimal(self.venue.state()["prices"][coin])

    def reserve(self, coin: str, *, ttl_seconds: int, score: str, least: Decimal = Decimal(0)) -> Decision:
        """Reserve for a coin, and keep the grant. Raises `NotPossibleNow` when less than `least` USD is granted."""
        tags = {"venue": VENUE, "symbol": coin, "strategy": "meddler"}
        held = self.client.reserve(
            key=f"{self._next_key()}/hold", portfolio=PORTFOLIO, tags=tags,
            signal_score=Decimal(score), price=self.price(coin), ttl_seconds=ttl_seconds,
            spot_instrument=f"{VENUE}:{spot_of(coin)}", perp_instrument=f"{VENUE}:{perp_of(coin)}",
        )  # fmt: skip
        if not held.granted:
            raise NotPossibleNow
        self.current_hold = held
        if (held.budget or 0) < least:
            self.release()
            raise NotPossibleNow
        return held

    def release(self) -> None:
        """Release the current hold or position."""
        assert self.current_hold is not None, "there is a hold"
        self.client.release(key=f"{self._next_key()}/exit", position_id=str(self.current_hold.position_id))
        self.current_hold = None

    def fill_order(self, coin: str, held: Decision) -> None:
        """Fill both legs of a hold at the exchange."""
        assert held.quantity is not None, "it was granted with rules"
        self.venue.deposit(coin, held.quantity)
        self.venue.open(perp_of(coin), "short", held.quantity)

    def confirm_and_close(self, coin: str) -> None:
        """Confirm that fill late, then close the position at the exchange and in the ledger."""
        held = self.current_hold
        assert held is not None and held.quantity is not None, "there was a hold with rules"
        price = self.price(coin)
        self.current_hold = self.client.confirm(
            key=f"{self._next_key()}/fill", position_id=str(held.position_id), quantity=held.quantity, price=price,
            spot_price=price,
        )  # fmt: skip
        self.venue.close(perp_of(coin))
        self.venue.deposit(coin, held.quantity.copy_negate())
        self.release()

    def withdraw_usdt(self) -> None:
        """Withdraw all USDT but 200."""
        wallet = self.venue.state()["accounts"][self.venue.api_key]["wallets"]["spot"]
        with exact_arithmetic():
            self.withdrawn_usdt = Decimal(wallet["USDT"]) - _USDT_LEFT
        self.venue.deposit("USDT", self.withdrawn_usdt.copy_negate())

    def return_usdt(self) -> None:
        """Undo `withdraw_usdt`, and release the hold."""
        self.venue.deposit("USDT", self.withdrawn_usdt)
        self.release()

    def _next_key(self) -> str:
        return f"meddler/{next(self._numbers)}"


@dataclass(frozen=True, slots=True)
class Injection:
    """One change at the exchange that the ledger is not told of.

    kind: of the drift it causes. do: returns the subject of that drift, or raises `NotPossibleNow`.
    """

    what: str
    kind: str
    do: Callable[[ExchangeActions], str]
    undo: Callable[[ExchangeActions], None]


def _on_kept_perp(
    act: Callable[[ExchangeActions, str], None], subject: str = perp_of(KEPT)
) -> Callable[[ExchangeActions], str]:
    """Make an injection that acts on the perpetual leg of the kept position."""

    def do(actions: ExchangeActions) -> str:
        if not actions.kept_quantity:
            raise NotPossibleNow
        act(actions, perp_of(KEPT))
        return subject

    return do


def _buy_by_hand(actions: ExchangeActions) -> str:
    actions.venue.open(perp_of("SOL"), "long", Decimal(2))
    return perp_of("SOL")


def _omit_rows(actions: ExchangeActions) -> str:
    actions.venue.fault("hollow", "position", times=None)
    return "account"


def _fill_late(actions: ExchangeActions) -> str:
    actions.fill_order("SOL", actions.reserve("SOL", ttl_seconds=1, score="0.3"))
    return "SOL"


def _buy_option(actions: ExchangeActions) -> str:
    actions.venue.option(_OPTION, Decimal(1))
    return "BTC/USDC:USDC-311226-90000-C"


def _forget_hold(actions: ExchangeActions) -> str:
    return str(actions.reserve("XRP", ttl_seconds=1, score="0.3").position_id)


def _withdraw_hold_funds(actions: ExchangeActions) -> str:
    actions.reserve("XRP", ttl_seconds=300, score="1", least=_USDT_LEFT)
    actions.withdraw_usdt()
    return QUOTE


_SMALL_QUANTITY = Decimal("0.05")
_OPTION = "BTC-26DEC31-90000-C"

INJECTIONS = (
    Injection(
        "2 SOL bought by hand", "unknown_position", _buy_by_hand,
        lambda actions: actions.venue.close(perp_of("SOL")),
    ),
    Injection(
        "the exchange answers without its rows", "fetch_failed", _omit_rows,
        lambda actions: actions.venue.clear_faults(),
    ),
    Injection(
        f"{_SMALL_QUANTITY} {KEPT} more sold by hand", "quantity_differs",
        _on_kept_perp(lambda actions, perp: actions.venue.open(perp, "short", _SMALL_QUANTITY)),
        lambda actions: actions.venue.close(perp_of(KEPT), _SMALL_QUANTITY),
    ),
    Injection(
        "an order fills after its hold is over", "late_fill", _fill_late,
        lambda actions: actions.confirm_and_close("SOL"),
    ),
    Injection(
        f"the {KEPT} short is liquidated", "missing_position",
        _on_kept_perp(lambda actions, perp: actions.venue.liquidate(perp)),
        lambda actions: actions.venue.open(perp_of(KEPT), "short", actions.kept_quantity),
    ),
    Injection(
        f"the {KEPT} short is turned into a long", "side_flipped",
        _on_kept_perp(lambda actions, perp: actions.venue.flip(perp)),
        lambda actions: actions.venue.flip(perp_of(KEPT)),
    ),
    Injection(
        f"{_SMALL_QUANTITY} {KEPT} of the short closed by hand", "legs_unequal",
        _on_kept_perp(lambda actions, perp: actions.venue.close(perp, _SMALL_QUANTITY), subject=KEPT),
        lambda actions: actions.venue.open(perp_of(KEPT), "short", _SMALL_QUANTITY),
    ),
    Injection(
        "the money for a hold is withdrawn", "balance_below_holds", _withdraw_hold_funds, ExchangeActions.return_usdt
    ),
    Injection(
        "an option is bought by hand", "unreadable", _buy_option,
        lambda actions: actions.venue.option(_OPTION, Decimal(-1)),
    ),
    Injection("a bot forgets its hold", "expired_hold", _forget_hold, lambda _: None),
)  # fmt: skip
"""One injection per kind of drift, but `interest`: on so small an account it is dust."""


@dataclass(slots=True)
class InjectionResult:
    """One injection and what the reconciliation found.

    drift: its id, once confirmed. cleared: whether it is resolved. companions: further drifts of the same coin: a
    liquidated short, for example, is a missing position and leaves the legs unequal.
    """

    what: str
    kind: str
    subject: str
    drift: int | None = None
    cleared: bool = False
    companions: set[int] = field(default_factory=set)


def coin_of(subject: str) -> str:
    """Return the coin of a drift's subject."""
    return subject.partition("/")[0]


class DriftInjector:
    """Runs the injections in turn, and undoes each when it was found. Call `tick` repeatedly."""

    def __init__(self, client: LedgerClient, venue: PaperControl) -> None:
        self.injected: list[InjectionResult] = []
        self._client = client
        self._actions = ExchangeActions(client, venue)
        self._injections = cycle(INJECTIONS)
        self._next = next(self._injections)
        self._attempts = 0
        self._current: Injection | None = None
        self._idle_until = 0.0

    @property
    def status(self) -> str:
        """The present injection and its state, as text."""
        if self._current is None:
            return "quiet"
        return f"{self._current.what}: {'confirmed' if self.injected[-1].drift else 'not found yet'}"

    def tick(self, *, start_new: bool = True) -> bool:
        """Take the next step; return whether an injection is active. start_new: whether a new one may start."""
        if self._current is None:
            if start_new and time.monotonic() >= self._idle_until and (self.injected or self._has_agreed()):
                self._start()
        else:
            self._check(self._current, self.injected[-1])
        return self._current is not None

    def _has_agreed(self) -> bool:
        """Whether a run found a trade equal on both sides. Before that there is nothing to change."""
        return any(run.found.get("agrees") for run in self._client.reconciliations(PORTFOLIO, limit=20))

    def _start(self) -> None:
        chosen = self._next
        try:
            subject = chosen.do(self._actions)
        except NotPossibleNow:
            self._attempts += 1
            self._idle_until = time.monotonic() + 2 * _PAUSE_SECONDS
            if self._attempts >= _ATTEMPTS_MAX:
                self._next, self._attempts = next(self._injections), 0
            return
        self.injected.append(InjectionResult(chosen.what, chosen.kind, subject))
        self._current, self._next, self._attempts = chosen, next(self._injections), 0

    def _check(self, now: Injection, injected: InjectionResult) -> None:
        live = {drift.id: drift for drift in self._client.drifts(PORTFOLIO, state="live")}
        coin = coin_of(injected.subject)
        injected.companions.update(number for number, drift in live.items() if coin_of(drift.subject) == coin)
        if injected.drift is not None:
            if injected.drift not in live:
                injected.cleared = True
                self._current, self._idle_until = None, time.monotonic() + _PAUSE_SECONDS
            return
        wanted = (injected.kind, injected.subject, "confirmed")
        injected.drift = next((d.id for d in live.values() if (d.kind, d.subject, d.state) == wanted), None)
        if injected.drift is not None:
            now.undo(self._actions)

    def finish(self) -> None:
        """Finish the active injection, and run at least one, within `FIND_SECONDS_MAX`."""
        deadline = time.monotonic() + FIND_SECONDS_MAX
        while (self.tick(start_new=not self.injected) or not self.injected) and time.monotonic() < deadline:
            time.sleep(0.1)
