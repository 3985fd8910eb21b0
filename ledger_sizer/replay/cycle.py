"""Sends the commands of all bots at one bar, in the order and at the seconds at which live bots would send them.

    +0 s    funding is settled, rates become known
    +1 s    halt venues with an incident; close positions whose smoothed rate fell below the exit threshold
    +5 s    each bot reserves in its best two markets (a different bot is first at each bar)
    +20 s   orders fill, fill in part, fail, rest, or are lost
    +90 s   unconfirmed holds have expired; bots without headroom reserve once more, with new keys
    +100 s  the orders of these reservations get their outcomes
    +200 s  resting orders fill, and so do orders of bots that crashed after sending them: their holds have expired
    +260 s  commands whose answers got lost are sent again, with the same keys

All commands of a step, of every bot and both portfolios, go to the ledger in one `submit` and share one commit.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Literal, cast

from ledger_sizer.exchanges.known_markets import MARKETS, Market, MarketKey
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

HOLD_TTL_SECONDS = 60
EXTENSION_SECONDS = 300
POSITIONS_PER_BOT = 2


class SimulatedClock:
    """The ledger's time source during a replay: the time of the present step."""

    def __init__(self, start: datetime) -> None:
        self._now = start

    def __call__(self) -> datetime:
        return self._now

    def move_to(self, moment: datetime) -> None:
        """Set the time, which must not be earlier than the present time."""
        assert moment >= self._now, f"time would go back from {self._now} to {moment}"
        self._now = moment


@dataclass(frozen=True, slots=True)
class Step:
    """One command for the ledger, with what the book needs to record its decision."""

    command: AnyCommand
    book: Book
    order: Order | None = None
    fill: Fill | None = None


StepResult = tuple[Step, Decision]


class Cycle:
    """Plays bars in turn against an open ledger. commits: submitted batches."""

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
        self._lost_answers: list[StepResult] = []
        self._delayed_confirms: list[Step] = []
        self.commits = 0
        self._bar_label = ""
        self._bar_time = clock()
        self._bar_count = 0
        self._quotes: dict[MarketKey, Quote] = {}
        self._latest_quotes: dict[MarketKey, Quote] = {}

    def play(self, bar: Bar) -> None:
        """Send the commands of one bar."""
        self._bar_label = f"{bar.time:%Y%m%dT%H%M}"
        self._bar_time = bar.time
        self._quotes = {quote.key: quote for quote in bar.quotes if quote.key in MARKETS}
        self._latest_quotes |= self._quotes
        for book in self._books:
            book.collect_funding(self._quotes)
        signals = self._signals()
        self._send(1, [*self._incidents(), *self._exits(signals)])
        results = self._send(5, self._reservations(signals))
        self._send(20, self._outcomes(results))
        results = self._send(90, self._second_attempts(results))
        self._send(100, self._outcomes(results))
        self._send(200, self._take_delayed_confirms())
        self._send(260, [])
        self._bar_count += 1

    def finish(self) -> None:
        """After the last bar: value open positions, and expire the holds that are left."""
        self._clock.move_to(self._bar_time + timedelta(hours=1))
        for book in self._books:
            book.mark_to_market(self._latest_quotes)
            before = book.figures.expired
            book.expire(self._clock())
            freed = self._ledger.sweep(book.portfolio)
            if freed != book.figures.expired - before:
                book.report_violation(f"the last sweep freed {freed} holds, {book.figures.expired - before} were over")

    def _send(self, second: int, steps: Iterable[Step]) -> list[StepResult]:
        """Submit one step's commands, after those whose answers got lost, and record the decisions in the books."""
        retries, self._lost_answers = self._lost_answers, []
        batch = [*[step for step, _ in retries], *steps]
        if not batch:
            return []
        self._clock.move_to(self._bar_time + timedelta(seconds=second))
        for book in self._books:
            if any(step.book is book for step in batch):
                book.expire(self._clock())
        self.commits += 1
        answers = self._ledger.submit([step.command for step in batch])
        results = [(step, _require_decision(answer)) for step, answer in zip(batch, answers, strict=True)]
        for (step, first), (_, decision) in zip(retries, results, strict=False):
            step.book.record_replay(decision, first)
        new = results[len(retries) :]
        for step, decision in new:
            _record(step, decision)
            if is_retried(self._seed, step.command.key):
                self._lost_answers.append((step, decision))
        return new

    # --- market ---

    def _signals(self) -> dict[tuple[str, MarketKey], Signal]:
        """Signals by (bot, market), for the markets that are quoted at this bar and have enough history."""
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
                    yield from self._for_all_books(Resume, f"resume/{venue}", scope=f"venue={venue}")
                continue
            begun = incident(self._seed, venue, self._bar_label)
            if begun is not None:
                mode, self._incident_bars[venue] = begun
                mode = cast(Literal["halted", "reducing"], mode)
                yield from self._for_all_books(Halt, f"halt/{venue}", scope=f"venue={venue}", mode=mode)

    def _for_all_books(self, make: type[Halt] | type[Resume], name: str, **arguments: str) -> Iterator[Step]:
        for book in self._books:
            key = f"{self._bar_label}/{name}"
            yield Step(make(key=key, portfolio=book.portfolio, **arguments), book)  # type: ignore[arg-type]

    # --- exits ---

    def _exits(self, signals: Mapping[tuple[str, MarketKey], Signal]) -> Iterator[Step]:
        for book in self._books:
            for position_id, holding in book.holdings.items():
                signal = signals.get((holding.order.bot.name, holding.order.market.key))
                if signal is not None and signal.leaves:
                    yield self._exit(book, position_id, holding)

    def _exit(self, book: Book, position_id: str, holding: Holding) -> Step:
        market = holding.order.market
        key = f"{holding.order.key}/exit/{self._bar_label}"
        part = Decimal(0)
        if closes_in_two_parts(self._seed, key):
            with exact_arithmetic():
                part = floor_to_step(holding.quantity / 2, market.step)
        fill = self._fill(key, market, part or holding.quantity)
        return Step(Release(key=key, position_id=position_id, quantity=part or None), book, holding.order, fill)

    # --- entries ---

    def _reservations(self, signals: Mapping[tuple[str, MarketKey], Signal]) -> Iterator[Step]:
        """Reserve in each bot's best markets. A different bot is first at each bar."""
        turn = self._bar_count % len(self._bots)
        for bot in (*self._bots[turn:], *self._bots[:turn]):
            wanted = [
                (signal.score.copy_negate(), key)
                for key in self._quotes
                if (signal := signals.get((bot.name, key))) is not None and signal.enters
            ]
            wanted.sort()
            for book in self._books:
                free = [(score, key) for score, key in wanted if not book.is_busy(bot, key)]
                for minus_score, (venue, coin) in free[: POSITIONS_PER_BOT - book.busy_count(bot)]:
                    yield self._reserve(book, bot, MARKETS[venue, coin], minus_score.copy_negate(), 1)

    def _reserve(self, book: Book, bot: Strategy, market: Market, score: Decimal, attempt: int) -> Step:
        quote = self._quotes[market.key]
        key = f"{self._bar_label}/{bot.name}/{market.venue}-{market.coin}/{attempt}"
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

    def _second_attempts(self, results: Iterable[StepResult]) -> Iterator[Step]:
        """Reserve once more for bots without headroom: failed orders and crashed bots may have freed some."""
        tried = set()
        for step, decision in results:
            if step.order is None or decision.reason != "cap_exceeded":
                continue
            bot = step.order.bot
            if (step.book.portfolio, bot.name) not in tried:
                tried.add((step.book.portfolio, bot.name))
                yield self._reserve(step.book, bot, step.order.market, step.order.score, 2)

    def _outcomes(self, results: Iterable[StepResult]) -> Iterator[Step]:
        """Draw the outcomes of the orders whose reservations were granted."""
        for step, decision in results:
            order = step.order
            if order is None or not decision.granted:
                continue
            assert decision.position_id is not None and decision.quantity is not None
            outcome = order_outcome(self._seed, order.key)
            if outcome is OrderOutcome.FAILED:
                yield Step(Release(key=f"{order.key}/cancel", position_id=decision.position_id), step.book, order)
                continue
            quantity = decision.quantity
            if outcome is OrderOutcome.PARTIAL:
                quantity = partial_quantity(self._seed, order.key, quantity, order.market)
            confirm = self._confirm(step.book, order, decision.position_id, quantity)
            if outcome is OrderOutcome.SLOW:
                extend = Extend(
                    key=f"{order.key}/extend", position_id=decision.position_id, ttl_seconds=EXTENSION_SECONDS
                )
                yield Step(extend, step.book, order)
            if outcome in (OrderOutcome.SLOW, OrderOutcome.LATE):
                self._delayed_confirms.append(confirm)
            elif outcome is not OrderOutcome.CRASHED:
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

    def _take_delayed_confirms(self) -> list[Step]:
        steps, self._delayed_confirms = self._delayed_confirms, []
        return steps


def _require_decision(result: Decision | LedgerError) -> Decision:
    """Return the decision. Raises the error: no command of a replay may fail."""
    if isinstance(result, LedgerError):
        raise result
    return result


def _record(step: Step, decision: Decision) -> None:
    """Record a decision in the step's book."""
    book, order, fill = step.book, step.order, step.fill
    if decision.outcome == "denied":
        book.record_denial(decision)
    elif order is None:
        book.record_admin(decision)
    elif decision.command == "reserve":
        book.record_grant(order, decision)
    elif decision.command == "extend":
        book.record_extension(decision)
    elif decision.command == "confirm" and fill is not None:
        book.record_fill(order, fill, decision)
    elif fill is not None:
        book.record_close(fill, decision)
    else:
        book.record_cancel(decision)
