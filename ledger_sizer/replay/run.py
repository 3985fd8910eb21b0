"""Running a replay: a fresh pair of portfolios in one ledger, all bars through the cycle, then the proof.

Both portfolios have the same caps, bots, market and accidents. In one the bots send their scores (dynamic sizing), in
the other they do not (flat sizing).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from ledger_sizer.config import AppSettings, DynamicSizingSettings, LedgerSettings, TradingSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.commands import SetCap
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Finding
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import exact_arithmetic, positive, usd
from ledger_sizer.replay.accounting import Book, Figures
from ledger_sizer.replay.cycle import Cycle, SimulatedClock
from ledger_sizer.replay.source import Source
from ledger_sizer.replay.strategy import Strategy, strategies
from ledger_sizer.replay.venues import VENUES

DYNAMIC, FLAT = "replay-dynamic", "replay-flat"
PORTFOLIOS = (DYNAMIC, FLAT)

Timer = Callable[[], float]
"""Seconds that only go up, such as `time.perf_counter`."""
Progress = Callable[[str, int, int], None]
"""Called with (`replay` or `verify`, done, in all)."""


def usual_venue_cap(cap: Decimal) -> Decimal:
    """Two fifths of a portfolio's cap: three venues then have more room than the portfolio, so that either may bind."""
    with exact_arithmetic():
        return cap * 2 / 5


@dataclass(frozen=True, slots=True)
class Plan:
    """What to replay with. Caps and sizes in USD; fractions are those of dynamic sizing.

    venue_cap: cap of each venue's scope. min_notional: a reservation that could only be granted below it is refused,
    because two legs' fees would eat it. seed: of what befalls the orders.
    """

    bots: int = 8
    cap: Decimal = Decimal(5000)
    venue_cap: Decimal = Decimal(2000)
    max_position: Decimal = Decimal(1000)
    min_fraction: Decimal = Decimal("0.3")
    max_fraction: Decimal = Decimal("1.0")
    seed: int = 7
    strategies: tuple[Strategy, ...] = field(init=False)

    def __post_init__(self) -> None:
        for name in ("cap", "venue_cap", "max_position"):
            positive(getattr(self, name), name)
        if self.seed < 0:
            raise InvalidRequest(f"seed must be 0 or above, got {self.seed}", field="seed")
        object.__setattr__(self, "strategies", strategies(self.bots))

    @property
    def min_notional(self) -> Decimal:
        """A twentieth of the largest position, USD."""
        with exact_arithmetic():
            return self.max_position / 20

    def settings(self) -> AppSettings:
        """The ledger's settings for this plan: what decides about money comes from here, not from the environment."""
        return AppSettings(
            sizing=DynamicSizingSettings(
                enabled=True,
                min_allocation_fraction=self.min_fraction,
                max_allocation_fraction=self.max_fraction,
                max_portfolio_exposure=self.cap,
            ),
            trading=TradingSettings(max_position_size_usd=self.max_position),
            ledger=LedgerSettings(queue_size_max=100_000),
        )


@dataclass(frozen=True, slots=True)
class PortfolioReport:
    """One portfolio at the end. open_usd and open_positions: what is still open; head: (seq, hash) of its chain."""

    name: str
    figures: Figures
    open_usd: Decimal
    open_positions: int
    head: tuple[int, str]


@dataclass(frozen=True, slots=True)
class Report:
    """A replay's outcome. findings: of `verify`. commits: one per step that had commands."""

    source: Source
    plan: Plan
    portfolios: tuple[PortfolioReport, ...]
    findings: tuple[Finding, ...]
    positions: int
    commits: int
    replay_seconds: float
    verify_seconds: float

    @property
    def decisions(self) -> int:
        """How many decisions the ledger recorded."""
        return sum(portfolio.head[0] for portfolio in self.portfolios)

    @property
    def broken(self) -> list[str]:
        """What must never happen and did, by the desk's own book."""
        return [what for portfolio in self.portfolios for what in portfolio.figures.broken]

    @property
    def ok(self) -> bool:
        """Chain, counters and rows verified, and the desk's own book agrees with every decision."""
        return not self.findings and not self.broken


def replay(source: Source, plan: Plan, url: str, *, timer: Timer, progress: Progress | None = None) -> Report:
    """Play every bar of `source` into the ledger at `url`, and verify what it recorded.

    The database must not hold the replay's portfolios yet: a second run would only be answered from the first one's
    keys. Raises `InvalidRequest` then, and whatever `Ledger.open` raises.
    """
    tell = progress or (lambda _stage, _done, _total: None)
    clock = SimulatedClock(source.first)
    with Ledger.open(url, settings=plan.settings(), clock=clock) as ledger:
        _require_fresh(ledger)
        books = [Book(name, scored=name == DYNAMIC, cap=plan.cap, venue_cap=plan.venue_cap) for name in PORTFOLIOS]
        started = timer()
        _set_caps(ledger, books, plan)
        cycle = Cycle(ledger, clock, books, plan.strategies, seed=plan.seed, min_notional_usd=plan.min_notional)
        for done, bar in enumerate(source.read(), 1):
            cycle.play(bar)
            tell("replay", done, source.bars)
        cycle.finish()
        played = timer()
        checks = [ledger.verify(book.portfolio, lambda done, total: tell("verify", done, total)) for book in books]
        return Report(
            source=source,
            plan=plan,
            portfolios=tuple(
                _report(ledger, book, check.heads[book.portfolio]) for book, check in zip(books, checks, strict=True)
            ),
            findings=tuple(finding for check in checks for finding in check.findings),
            positions=sum(check.positions for check in checks),
            commits=cycle.commits,
            replay_seconds=played - started,
            verify_seconds=timer() - played,
        )


def _require_fresh(ledger: Ledger) -> None:
    taken = sorted(set(PORTFOLIOS) & set(ledger.portfolios()))
    if taken:
        raise InvalidRequest(
            f"the database already has the portfolio {taken[0]!r}; a replay needs a database without it "
            "(leave --database-url away for a temporary one)",
            field="database_url",
        )


def _set_caps(ledger: Ledger, books: list[Book], plan: Plan) -> None:
    scopes = [("portfolio", plan.cap), *[(f"venue={venue}", plan.venue_cap) for venue in VENUES]]
    for book in books:
        caps = [SetCap(key=f"cap/{scope}", portfolio=book.portfolio, scope=scope, cap=cap) for scope, cap in scopes]
        for result in ledger.submit(caps):
            if not isinstance(result, Decision):
                raise result
            book.administered(result)


def _report(ledger: Ledger, book: Book, head: tuple[int, str]) -> PortfolioReport:
    """Compare the book with the ledger's own counters a last time."""
    exposure = ledger.exposure(book.portfolio)
    for what, ledgers, own in (("held", exposure.held, book.held_e8), ("open", exposure.open, book.open_e8)):
        if ledgers != usd(own):
            book.breaks(f"{what} is {ledgers} in the ledger, {usd(own)} by the desk's own book")
    recorded = sum(book.figures.decisions.values())
    if recorded != head[0]:
        book.breaks(f"the ledger recorded {head[0]} decisions, the desk knows of {recorded}")
    return PortfolioReport(book.portfolio, book.figures, usd(book.open_e8), len(book.holdings), head)
