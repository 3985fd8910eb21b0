"""Runs a replay: creates two portfolios in one ledger, plays all bars, verifies the ledger, and returns the report.

Both portfolios have the same caps, bots, market and accidents. The bots send their scores in one (dynamic sizing) and
not in the other (flat sizing).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from ledger_sizer.config import AppSettings, DynamicSizingSettings, LedgerSettings, TradingSettings
from ledger_sizer.exchanges.known_markets import VENUES
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.commands import SetCap
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.units import exact_arithmetic, positive, usd
from ledger_sizer.model.verification import Finding
from ledger_sizer.replay.accounting import Book, Figures
from ledger_sizer.replay.cycle import Cycle, SimulatedClock
from ledger_sizer.replay.source import Source
from ledger_sizer.replay.strategy import Strategy, strategies

DYNAMIC, FLAT = "replay-dynamic", "replay-flat"
PORTFOLIOS = (DYNAMIC, FLAT)

Timer = Callable[[], float]
"""A monotonic clock in seconds, such as `time.perf_counter`."""
Progress = Callable[[str, int, int], None]
"""Called with (`replay` or `verify`, number done, total)."""


def default_venue_cap(cap: Decimal) -> Decimal:
    """Return 2/5 of the portfolio's cap. Three venue caps then exceed the portfolio's, so that either may bind."""
    with exact_arithmetic():
        return cap * 2 / 5


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of a replay. Caps and sizes in USD; fractions are those of dynamic sizing.

    venue_cap: cap of each venue's scope. min_notional: smallest reservation that is granted, because the fees of two
    legs would exceed the yield of a smaller one. seed: of the outcomes of orders, and of incidents.
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
        """1/20 of the largest position, USD."""
        with exact_arithmetic():
            return self.max_position / 20

    def settings(self) -> AppSettings:
        """Return the ledger's settings for this plan. No sizing, cap or guard comes from the environment."""
        return AppSettings(
            sizing=DynamicSizingSettings(
                enabled=True,
                min_allocation_fraction=self.min_fraction,
                max_allocation_fraction=self.max_fraction,
                max_portfolio_exposure=self.cap,
            ),
            trading=TradingSettings(max_position_size_usd=self.max_position),
            ledger=LedgerSettings(queue_size_max=100_000, portfolios="create", required_tags=()),
        )


@dataclass(frozen=True, slots=True)
class PortfolioReport:
    """One portfolio at the end. open_usd, open_positions: still open. head: (seq, hash) of its last decision."""

    name: str
    figures: Figures
    open_usd: Decimal
    open_positions: int
    head: tuple[int, str]


@dataclass(frozen=True, slots=True)
class Report:
    """Result of a replay. findings: of `verify`. commits: one per step that had commands."""

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
        """Number of decisions the ledger recorded."""
        return sum(portfolio.head[0] for portfolio in self.portfolios)

    @property
    def violations(self) -> list[str]:
        """What the books found that must never happen."""
        return [what for portfolio in self.portfolios for what in portfolio.figures.violations]

    @property
    def ok(self) -> bool:
        """Whether chain, counters and rows verify, and the books agree with every decision."""
        return not self.findings and not self.violations


def replay(source: Source, plan: Plan, url: str, *, timer: Timer, progress: Progress | None = None) -> Report:
    """Play every bar of `source` into the ledger at `url`, and verify what it recorded.

    Raises `InvalidRequest` when the database has the replay's portfolios already, because a second run would only get
    the first run's decisions again by their keys; and whatever `Ledger.open` raises.
    """
    report_progress = progress or (lambda _stage, _done, _total: None)
    clock = SimulatedClock(source.first)
    with Ledger.open(url, settings=plan.settings(), clock=clock) as ledger:
        _require_fresh(ledger)
        books = [Book(name, scored=name == DYNAMIC, cap=plan.cap, venue_cap=plan.venue_cap) for name in PORTFOLIOS]
        started = timer()
        _set_caps(ledger, books, plan)
        cycle = Cycle(ledger, clock, books, plan.strategies, seed=plan.seed, min_notional_usd=plan.min_notional)
        for done, bar in enumerate(source.read(), 1):
            cycle.play(bar)
            report_progress("replay", done, source.bars)
        cycle.finish()
        played = timer()
        checks = [
            ledger.verify(book.portfolio, lambda done, total: report_progress("verify", done, total)) for book in books
        ]
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
            book.record_admin(result)


def _report(ledger: Ledger, book: Book, head: tuple[int, str]) -> PortfolioReport:
    """Compare the book with the ledger's counters, and return the portfolio's report."""
    exposure = ledger.exposure(book.portfolio)
    for what, ledgers, own in (("held", exposure.held, book.held_e8), ("open", exposure.open, book.open_e8)):
        if ledgers != usd(own):
            book.report_violation(f"{what} is {ledgers} in the ledger, {usd(own)} by the desk's own book")
    recorded = sum(book.figures.decisions.values())
    if recorded != head[0]:
        book.report_violation(f"the ledger recorded {head[0]} decisions, the desk knows of {recorded}")
    return PortfolioReport(book.portfolio, book.figures, usd(book.open_e8), len(book.holdings), head)
