"""The reads of a ledger: each has its own connection and one consistent snapshot, and never waits for the writer."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Unpack

from ledger_sizer.history.archive_files import ArchiveFiles
from ledger_sizer.history.as_of import AsOf
from ledger_sizer.model.caller import Caller
from ledger_sizer.model.choices import ExportForm, Status
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Exposure, ExposurePage, HistoryFilters, Page, Position
from ledger_sizer.model.net import Net
from ledger_sizer.model.overview import Overview, OverviewQuery
from ledger_sizer.model.verification import VerifyReport
from ledger_sizer.rules.explain import Explanation, explain
from ledger_sizer.verify.chain import Head, Heads, Progress, heads_of, verify
from ledger_sizer.views.exposure_series import BlockExtremes
from ledger_sizer.views.net import NetView
from ledger_sizer.views.overview_query import read_overview
from ledger_sizer.views.queries import Queries
from ledger_sizer.wire.export import export_lines


class LedgerReads:
    """The reads of `Ledger`.

    Where a portfolio begins with its first use, one that nobody used yet reads as an empty one: its cap is the
    settings', and there is nothing in it. With `LEDGER_PORTFOLIOS=declared` its name raises `NotFound`. So do, always,
    a decision or position that does not exist, and `verify`, `heads` and `overview` of such a portfolio.
    """

    _files: ArchiveFiles
    _block_extremes: BlockExtremes
    _net_view: NetView

    @property
    def _reads(self) -> Queries:
        """The queries of an open ledger. Raises `Closed`."""
        raise NotImplementedError

    @property
    def caller(self) -> Caller:
        """Who uses the ledger now: the caller of the request that is being served, else who opened it."""
        raise NotImplementedError

    @property
    def _own_client(self) -> str | None:
        """The client whose keys a look-up may find; None: those of all."""
        return None if self.caller.sees_all else self.caller.client

    def _now_us(self) -> int | None:
        raise NotImplementedError

    def portfolios(self) -> list[str]:
        """Names of all portfolios."""
        return self._reads.portfolios()

    def exposure(self, portfolio: str = "main", as_of: AsOf | None = None) -> Exposure:
        """Return cap, held, open, headroom and status of a portfolio and each of its scopes.

        The cap of a scope is its own, or else the default of its tag name. `pools` has the guaranteed scopes.
        as_of: a seq or an aware datetime; the exposure is then summed over all decisions up to it, each read once.
        """
        return self._reads.exposure(portfolio, as_of)

    def exposure_page(self, /, portfolio: str = "main", **filters: Any) -> ExposurePage:
        """Return the whole and a page of the other scopes, where a portfolio has very many.

        Filters: as_of=, dimension=, cursor=, limit= (see `Queries.exposure_page`).
        """
        return self._reads.exposure_page(portfolio, **filters)

    def position(self, position_id: str) -> Position:
        """Return one position by its name. Raise `NotFound`."""
        return self._reads.position(position_id)

    def positions(self, /, portfolio: str | None = None, **filters: Any) -> Page[Position]:
        """Return positions, oldest first. Filters: state=, tags=, key=, cursor=, limit= (see `Queries.positions`)."""
        return self._reads.positions(portfolio, client=self._own_client, **filters)

    def history(
        self, portfolio: str = "main", *, cursor: str | None = None, limit: int = 100, **filters: Unpack[HistoryFilters]
    ) -> Page[Decision]:
        """Return decisions of a portfolio, newest first unless `ascending`; filters: see `HistoryFilters`.

        cursor: of the previous page; it stays valid while decisions are added or archived. limit: 1 to 1000.
        """
        return self._reads.history(portfolio, cursor=cursor, limit=limit, client=self._own_client, **filters)

    def export(
        self,
        portfolio: str = "main",
        form: ExportForm = "ndjson",
        *,
        full: bool = True,
        cursor: str | None = None,
        **filters: Unpack[HistoryFilters],
    ) -> Iterator[bytes]:
        """Return what `history` pages through from the cursor on, as CSV or NDJSON, in parts and constant memory.

        full: include every hashed field, so that a reader of the export can recompute the chain.
        """
        lines = export_lines(form, full=full)
        return map(lines, self._reads.history_blocks(portfolio, cursor=cursor, client=self._own_client, **filters))

    def lookup(self, key: str, portfolio: str = "main") -> Decision | None:
        """Return the decision that a key of this client got; None if the key is unused, or another client's.

        After a crash it tells what became of a request whose answer was lost. An archived key is not found: it is as
        good as unused. A caller that reads for all, such as the command line, finds the keys of all clients.
        """
        return self._reads.lookup(portfolio, key, self.caller)

    def desk_status(self) -> Status:
        """Return the desk's status: `halted` and `reducing` count in all portfolios (see `halt` of portfolio `*`)."""
        return self.desk()[0]

    def desk(self) -> tuple[Status, Decision | None]:
        """Return the desk's status, and the halt or resume that set it; None where none did, or it is archived."""
        return self._reads.desk()

    def decision(self, seq: int, portfolio: str = "main") -> Decision:
        """Return one decision by its seq in the portfolio's chain. Raise `NotFound`."""
        return self._reads.decision(portfolio, seq)

    def overview(self, look: OverviewQuery | None = None) -> Overview:
        """Return one snapshot of the ledger: all portfolios, and one of them in full."""
        return read_overview(self._reads.engine, look or OverviewQuery(), self._now_us(), self._block_extremes)

    def net(self, portfolio: str = "main") -> Net:
        """Return what a portfolio, or the desk (`*`), has of each coin over all accounts, naked coins first.

        Summed over the open positions; beside it what the last reconciliation saw of these coins at the exchanges.
        """
        return self._net_view.read(portfolio)

    def explain(self, reference: int | str, portfolio: str = "main") -> Explanation:
        """Explain a decision, given its seq (in `portfolio`) or the position_id of the position it created."""
        return explain(self._reads.resolve(reference, portfolio))

    def heads(self, portfolio: str | None = None) -> dict[str, tuple[int, str]]:
        """Return the chain heads: (seq, hash) by portfolio. Copies outside the database reveal a later rewrite."""
        return heads_of(self._reads.engine, portfolio)

    def verify(
        self,
        portfolio: str | None = None,
        progress: Progress | None = None,
        *,
        since: Heads | None = None,
        kept: Mapping[str, Collection[Head]] | None = None,
    ) -> VerifyReport:
        """Check the audit chain from its start and recompute every counter from the position rows.

        Reads one snapshot and the archive files. progress: called now and then with (decisions done, decisions in
        all). since: trusted heads (from `heads`) to start at; each must still be in its chain. kept: more trusted
        heads, by portfolio, which must be in it too.
        """
        return verify(self._reads.engine, portfolio, progress, since=since, kept=kept, files=self._files)
