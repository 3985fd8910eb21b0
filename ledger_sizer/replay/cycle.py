"""The orchestrator's cycle: what all bots do at one bar, in the order and at the seconds they would do it.

    +0 s    funding settles, rates become known
    +1 s    venues with an incident are halted; positions whose smoothed rate fell below the exit threshold are closed
    +5 s    each bot asks for its best two markets (another bot is first at each bar)
    +20 s   their orders fill, fill in part, fail, rest, or are never heard of again
    +90 s   holds nobody confirmed are over; bots that found no room ask once more, with new keys
    +100 s  those orders fill likewise
    +200 s  resting orders fill, and so do orders of bots that died after sending them: their holds have expired
    +260 s  answers that got lost are asked for again, with the same keys

All commands of a step, of every bot and both portfolios, go to the ledger in one `submit` and share one commit.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, cast

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.commands import AnyCommand, Confirm, Extend, Halt, Release, Reserve, Resume
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.units import exact_arithmetic, floor_to_step
from ledger_sizer.replay.accounting import Book, Fill, Holding, Order
from ledger_sizer.replay.bars import Bar, Quote
from ledger_sizer.replay.order_outcomes import (
    OrderOutcome,
    closes_in_two_parts,
    fill_price,
    incident,
    is_retried,
    order_outcome,
    partial_quantity,
)
from ledger_sizer.replay.strategy import Signal, Strategy, read_signal
from ledger_sizer.replay.venues import MARKETS, Market, MarketKey

HOLD_TTL_SECONDS = 60
EXTENSION_SECONDS = 300
POSITIONS_PER_BOT = 2
NO_ROOM = ("cap_exceeded", "below_min_notional", "below_min_qty")


class SimulatedClock:
    """The ledger's time source during a replay: it stands at the step that is being played."""

    def __init__(self, start: datetime) -> None:
        self._now = start

    def __call__(self) -> datetime:
        return self._now

    def move_to(self, moment: datetime) -> None:
        """Go on to `moment`; a replay never goes back."""
        assert moment >= self._now, f"time would go back from {self._now} to {moment}"
        self._now = moment


@dataclass(frozen=True, slots=True)
class Step:
    """One command on its way to the ledger, with what the desk needs to book its answer."""

    command: AnyCommand
    book: Book
    order: Order | None = None
    fill: Fill | None = None


Answered = tuple[Step, Decision]


class Cycle:
    """Plays bars, one after the other, against an open ledger."""

    def __init__(
        self,
        ledger: Ledger,
        clock: SimulatedClock,
        books: Sequence[Book],
        bots: Sequence[Strategy],
        *,
        seed: int,
        min_notional_usd: Decimal,
    ) -> None:
        self._ledger = ledger
        self._clock = clock
        self._books = books
        self._bots = bots
        self._seed = seed
        self._min_notional_usd = min_notional_usd
        self._rates: dict[MarketKey, deque[Decimal]] = {}
        self._window_bars_max = max(bot.window_bars for bot in bots)
        self._incident_bars: dict[str, int] = {}
        self._unanswered: list[Answered] = []
        self._afterwards: list[Step] = []
        self.commits = 0
        self._bar_name = ""
        self._bar_time = clock()
        self._bar_count = 0
        self._quotes: dict[MarketKey, Quote] = {}
        self._latest_quotes: dict[MarketKey, Quote] = {}

    def play(self, bar: Bar) -> None:
        """Everything that happens at one bar."""
        self._bar_name = f"{bar.time:%Y%m%dT%H%M}"
        self._bar_time = bar.time
        self._quotes = {quote.key: quote for quote in bar.quotes if quote.key in MARKETS}
        self._latest_quotes |= self._quotes
        for book in self._books:
            book.settle(self._quotes)
        signals = self._signals()
        self._send(1, [*self._incidents(), *self._exits(signals)])
        asked = self._send(5, self._asks(signals))
        self._send(20, self._outcomes(asked))
        asked = self._send(90, self._second_asks(asked))
        self._send(100, self._outcomes(asked))
        self._send(200, self._take_afterwards())
        self._send(260, [])
        self._bar_count += 1

    def finish(self) -> None:
        """After the last bar: value what is open, free the holds nobody will confirm any more."""
        self._clock.move_to(self._bar_time + timedelta(hours=1))
        for book in self._books:
            book.mark(self._latest_quotes)
            before = book.figures.expired
            book.expire(self._clock())
            freed = self._ledger.sweep(book.portfolio)
            if freed != book.figures.expired - before:
                book.breaks(f"the last sweep freed {freed} holds, {book.figures.expired - before} were over")

    def _send(self, second: int, steps: Iterable[Step]) -> list[Answered]:
        """Submit a step's commands, those whose answers got lost before first, and book the answers."""
        again, self._unanswered = self._unanswered, []
        batch = [*[step for step, _ in again], *steps]
        if not batch:
            return []
        self._clock.move_to(self._bar_time + timedelta(seconds=second))
        for book in self._books:
            if any(step.book is book for step in batch):
                book.expire(self._clock())
        self.commits += 1
        results = self._ledger.submit([step.command for step in batch])
        answered = [(step, _decided(result)) for step, result in zip(batch, results, strict=True)]
        for (step, first), (_, decision) in zip(again, answered, strict=False):
            step.book.replayed(decision, first)
        fresh = answered[len(again) :]
        for step, decision in fresh:
            _booked(step, decision)
            if is_retried(self._seed, step.command.key):
                self._unanswered.append((step, decision))
        return fresh

    # Looking at the market.

    def _signals(self) -> dict[tuple[str, MarketKey], Signal]:
        """Each bot's view of each market that is quoted at this bar and has enough history."""
        signals = {}
        for key, quote in self._quotes.items():
            rates = self._rates.setdefault(key, deque(maxlen=self._window_bars_max))
            rates.append(quote.rate)
            history = tuple(rates)
            for bot in self._bots:
                signal = read_signal(bot, history)
                if signal is not None:
                    signals[bot.name, key] = signal
        return signals

    def _incidents(self) -> Iterator[Step]:
        """Halt a venue in both portfolios when an incident begins, resume it when it is over."""
        for venue in sorted({venue for venue, _ in self._quotes}):
            left = self._incident_bars.get(venue)
            if left is not None:
                self._incident_bars[venue] = left - 1
                if left <= 1:
                    del self._incident_bars[venue]
                    yield from self._to_all(Resume, f"resume/{venue}", scope=f"venue={venue}")
                continue
            begins = incident(self._seed, venue, self._bar_name)
            if begins is not None:
                mode, self._incident_bars[venue] = begins
                mode = cast(Literal["halted", "reducing"], mode)
                yield from self._to_all(Halt, f"halt/{venue}", scope=f"venue={venue}", mode=mode)

    def _to_all(self, make: type[Halt] | type[Resume], name: str, **arguments: str) -> Iterator[Step]:
        for book in self._books:
            key = f"{self._bar_name}/{name}"
            yield Step(make(key=key, portfolio=book.portfolio, **arguments), book)  # type: ignore[arg-type]

    # Going out.

    def _exits(self, signals: Mapping[tuple[str, MarketKey], Signal]) -> Iterator[Step]:
        for book in self._books:
            for position_id, holding in book.holdings.items():
                signal = signals.get((holding.order.bot.name, holding.order.market.key))
                if signal is not None and signal.leaves:
                    yield self._exit(book, position_id, holding)

    def _exit(self, book: Book, position_id: str, holding: Holding) -> Step:
        market = holding.order.market
        key = f"{holding.order.key}/exit/{self._bar_name}"
        part = Decimal(0)
        if closes_in_two_parts(self._seed, key):
            with exact_arithmetic():
                part = floor_to_step(holding.quantity / 2, market.step)
        fill = self._fill(key, market, part or holding.quantity)
        return Step(Release(key=key, position_id=position_id, quantity=part or None), book, holding.order, fill)

    # Going in.

    def _asks(self, signals: Mapping[tuple[str, MarketKey], Signal]) -> Iterator[Step]:
        """Each bot's best markets, another bot first at each bar."""
        turn = self._bar_count % len(self._bots)
        for bot in (*self._bots[turn:], *self._bots[:turn]):
            wanted = [
                (-signal.score, key)
                for key in self._quotes
                if (signal := signals.get((bot.name, key))) is not None and signal.enters
            ]
            wanted.sort()
            for book in self._books:
                free = [(score, key) for score, key in wanted if not book.is_busy(bot, key)]
                for minus_score, (venue, coin) in free[: POSITIONS_PER_BOT - book.busy_count(bot)]:
                    yield self._ask(book, bot, MARKETS[venue, coin], -minus_score, 1)

    def _ask(self, book: Book, bot: Strategy, market: Market, score: Decimal, attempt: int) -> Step:
        quote = self._quotes[market.key]
        key = f"{self._bar_name}/{bot.name}/{market.venue}-{market.coin}/{attempt}"
        command = Reserve(
            key=key,
            portfolio=book.portfolio,
            tags={"venue": market.venue, "symbol": market.coin, "strategy": bot.name},
            signal_score=score if book.scored else None,
            price=quote.perp.open,
            spot_instrument=market.spot,
            perp_instrument=market.perp,
            min_notional_usd=self._min_notional_usd,
            ttl_seconds=HOLD_TTL_SECONDS,
        )
        return Step(command, book, Order(key, bot, market, quote, score))

    def _second_asks(self, asked: Iterable[Answered]) -> Iterator[Step]:
        """Bots that found no room try their best market once more: failed orders and dead bots may have left some."""
        tried = set()
        for step, decision in asked:
            if step.order is None or decision.reason not in NO_ROOM:
                continue
            bot = step.order.bot
            if (step.book.portfolio, bot.name) not in tried:
                tried.add((step.book.portfolio, bot.name))
                yield self._ask(step.book, bot, step.order.market, step.order.score, 2)

    def _outcomes(self, asked: Iterable[Answered]) -> Iterator[Step]:
        """What becomes of the orders whose reservations were granted."""
        for step, decision in asked:
            order = step.order
            if order is None or not decision.granted:
                continue
            assert decision.position_id is not None and decision.quantity is not None
            fate = order_outcome(self._seed, order.key)
            if fate is OrderOutcome.FAILED:
                yield Step(Release(key=f"{order.key}/cancel", position_id=decision.position_id), step.book, order)
                continue
            quantity = decision.quantity
            if fate is OrderOutcome.PARTIAL:
                quantity = partial_quantity(self._seed, order.key, quantity, order.market)
            confirm = self._confirm(step.book, order, decision.position_id, quantity)
            if fate is OrderOutcome.SLOW:
                extend = Extend(
                    key=f"{order.key}/extend", position_id=decision.position_id, ttl_seconds=EXTENSION_SECONDS
                )
                yield Step(extend, step.book, order)
            if fate in (OrderOutcome.SLOW, OrderOutcome.LATE):
                self._afterwards.append(confirm)
            elif fate is not OrderOutcome.CRASHED:
                yield confirm

    def _confirm(self, book: Book, order: Order, position_id: str, quantity: Decimal) -> Step:
        fill = self._fill(order.key, order.market, quantity)
        command = Confirm(
            key=f"{order.key}/fill",
            position_id=position_id,
            quantity=fill.quantity,
            price=fill.perp_price,
            spot_price=fill.spot_price,
        )
        return Step(command, book, order, fill)

    def _fill(self, key: str, market: Market, quantity: Decimal) -> Fill:
        quote = self._quotes[market.key]
        return Fill(
            quantity,
            fill_price(self._seed, f"{key}/perp", quote.perp, market.perp.tick_size),
            fill_price(self._seed, f"{key}/spot", quote.spot, market.spot.tick_size),
        )

    def _take_afterwards(self) -> list[Step]:
        steps, self._afterwards = self._afterwards, []
        return steps


def _decided(result: Decision | LedgerError) -> Decision:
    """A replay sends nothing that the ledger could refuse to answer, so an error ends it."""
    if isinstance(result, LedgerError):
        raise result
    return result


def _booked(step: Step, decision: Decision) -> None:
    """Enter an answer in the desk's book."""
    book, order, fill = step.book, step.order, step.fill
    if decision.outcome == "denied":
        book.denied(decision)
    elif order is None:
        book.administered(decision)
    elif decision.command == "reserve":
        book.granted(order, decision)
    elif decision.command == "extend":
        book.extended(decision)
    elif decision.command == "confirm" and fill is not None:
        book.filled(order, fill, decision)
    elif fill is not None:
        book.closed(fill, decision)
    else:
        book.cancelled(decision)
