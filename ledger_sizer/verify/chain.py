"""Verification: is the ledger what its decisions say, and are the decisions those that were made?

One reading of one snapshot, archive files first, in memory that does not grow with history:

1. the chain: every decision in order, its seq gapless, its hash recomputed from its predecessor's; the head last;
2. the positions: each row against the decisions about it (see `verify_positions`);
3. the scopes: what each decision saw of them against what the ones before left, each counter against the sum of its
   position rows, each cap and status against the last decision (see `verify_scopes`);
4. the facets by which history is searched: none may be missing, or a decision could be hidden from a filter.

Nothing is repaired. A finding names the first decision, by seq, that the wrong row concerns. From a trusted head on,
what was decided before is not read again: the head must still stand in the chain, and everything after it must follow.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.exc import DBAPIError

from ledger_sizer.history.archive_files import ArchiveDamaged, ArchiveFiles, Manifest, manifests
from ledger_sizer.history.history import BLOCK
from ledger_sizer.model.command_base import portfolio_name
from ledger_sizer.model.decisions import FIELD_SEPARATOR, GENESIS_HASH, Fields, chain_hash, fields_text, is_head
from ledger_sizer.model.domain import Finding, VerifyReport
from ledger_sizer.model.errors import InvalidRequest, NotFound, Unavailable
from ledger_sizer.storage.database import raw_rows, redacted_url, stream_rows
from ledger_sizer.storage.tables import (
    ArchiveRow,
    DecisionRow,
    FacetBlockRow,
    FacetRow,
    PortfolioRow,
    PositionRow,
    ScopeRow,
)
from ledger_sizer.verify.positions import UNREADABLE, PositionCheck, misfit
from ledger_sizer.verify.scopes import ScopeCheck

Progress = Callable[[int, int], None]
"""Called with (decisions done, decisions in all)."""
Heads = Mapping[str, tuple[int, str]]
"""Chain heads by portfolio: (seq, hash)."""

_CHUNK = 500
_BLOCKS_AT_ONCE = 16
"""Full blocks whose facets are looked up together: one lookup each took a tenth of the time."""
_FINDINGS_MAX = 100

_Facet = tuple[str, str, str, str]
"""What history is searched by: tags, command, outcome, reason (empty for none)."""


def heads_of(engine: Engine, portfolio: str | None = None) -> dict[str, tuple[int, str]]:
    """The chain heads now, of one portfolio or of all."""
    query = select(PortfolioRow.name, PortfolioRow.last_seq, PortfolioRow.last_hash).order_by(PortfolioRow.id)
    if portfolio is not None:
        query = query.where(PortfolioRow.name == portfolio_name(portfolio))
    try:
        with engine.connect() as connection, connection.begin():
            found = {name: (seq, head) for name, seq, head in connection.execute(query)}
    except DBAPIError as error:
        raise Unavailable(f"cannot read {redacted_url(engine.url)}: {str(error.orig).strip()}") from None
    if portfolio is not None and not found:
        raise NotFound(f"no portfolio {portfolio!r}")
    return found


def verify(
    engine: Engine,
    portfolio: str | None = None,
    progress: Progress | None = None,
    *,
    since: Heads | None = None,
    files: ArchiveFiles | None = None,
) -> VerifyReport:
    """Verify one portfolio, or all. Raises `NotFound` for one that does not exist, `Unavailable` without a database.

    since: trusted heads to begin at (`InvalidRequest` where one is none); a portfolio without one is read from its
    first decision.
    """
    given: Mapping[str, Any] = since or {}
    for name, head in given.items():
        if not (isinstance(head, tuple) and len(head) == 2 and is_head(*head)):
            raise InvalidRequest(f"since: the head of {name!r} must be a seq and its hash, got {head!r}", field="since")
    try:
        return _verify(engine, portfolio, progress, since or {}, files or ArchiveFiles())
    except DBAPIError as error:
        raise Unavailable(f"cannot read {redacted_url(engine.url)}: {str(error.orig).strip()}") from None


def _verify(
    engine: Engine, portfolio: str | None, progress: Progress | None, since: Heads, files: ArchiveFiles
) -> VerifyReport:
    # One snapshot for everything, so that a busy ledger is not seen half moved.
    snapshot = engine.execution_options(isolation_level=_snapshot_level(engine))
    with snapshot.connect() as connection, connection.begin():
        heads, findings = _heads(connection, portfolio)
        total = sum(max(head.last_seq - since.get(head.name, (0,))[0], 0) for head in heads)
        decisions = positions = 0
        for head in heads:
            check = _PortfolioCheck(connection, head, since.get(head.name, (0, GENESIS_HASH)), files)
            for done in check.read():
                if progress is not None:
                    progress(decisions + done, total)
            decisions += check.decision_count
            positions += check.position_count
            findings += check.findings()
        if portfolio is None:
            findings += _orphans(connection)
            gone = sorted(since.keys() - {*connection.execute(select(PortfolioRow.name)).scalars()})
            findings += [Finding(name, since[name][0], "the trusted head's portfolio is gone") for name in gone]
        return VerifyReport(
            tuple(findings), decisions, positions, {head.name: (head.last_seq, head.last_hash) for head in heads}
        )


def _heads(connection: Connection, portfolio: str | None) -> tuple[list[Any], list[Finding]]:
    """The rows of the portfolios, and what is wrong with those from which nothing can be checked."""
    query = select(PortfolioRow.__table__).order_by(PortfolioRow.id)
    if portfolio is not None:
        query = query.where(PortfolioRow.name == portfolio_name(portfolio))
    heads, findings = [], []
    for row in connection.execute(query):
        wrong = misfit(PortfolioRow.__table__, row)
        if wrong is None:
            heads.append(row)
            continue
        name = row.name if isinstance(row.name, str) else f"(id {row.id})"
        findings.append(Finding(name, None, f"the portfolio's row {wrong}; nothing else of it was checked"))
    if portfolio is not None and not heads and not findings:
        raise NotFound(f"no portfolio {portfolio!r}")
    return heads, findings


def _orphans(connection: Connection) -> list[Finding]:
    """Rows whose portfolio's own row is gone."""
    findings = []
    for row in (DecisionRow, PositionRow, ScopeRow):
        owner = select(PortfolioRow.id).where(PortfolioRow.id == row.portfolio_id).exists()
        found = connection.execute(select(row.portfolio_id).where(~owner).limit(1)).scalar()
        if found is not None:
            what = f"{row.__tablename__} of a portfolio whose own row is missing"
            findings.append(Finding(f"(id {found})", None, what))
    return findings


def _snapshot_level(engine: Engine) -> str:
    return "SERIALIZABLE" if engine.dialect.name == "sqlite" else "REPEATABLE READ"


class _PortfolioCheck:
    """The reading of one portfolio, and what it found."""

    def __init__(self, connection: Connection, head: Any, since: tuple[int, str], files: ArchiveFiles) -> None:
        self._connection = connection
        self._head = head
        self._since, self._previous = since
        self._files = files
        self._found_in: dict[str, list[Finding]] = {part: [] for part in ("chain", "positions", "scopes", "facets")}
        self._positions = PositionCheck(
            connection, head.id, head.name, self._since, lambda seq, what: self._found(seq, what, "positions")
        )
        self._expected = self._since + 1
        self._broken = False
        self._last_us: int | None = None
        self._named = head.name + FIELD_SEPARATOR
        self._scopes = ScopeCheck(
            connection, head.id, whole=not self._since, found=lambda seq, what: self._found(seq, what, "scopes")
        )
        self._block: set[_Facet] = set()
        self._facets: dict[int, set[_Facet]] = {}
        self.decision_count = 0

    def _found(self, seq: int | None, what: str, part: str = "chain") -> None:
        if len(self._found_in[part]) < _FINDINGS_MAX:
            self._found_in[part].append(Finding(self._head.name, seq, what))

    def findings(self) -> list[Finding]:
        """What was found: the chain's first, because a wrong decision explains what follows from it."""
        return [finding for part in self._found_in.values() for finding in part]

    @property
    def position_count(self) -> int:
        """Position rows read, archived or live."""
        return self._positions.count

    def read(self) -> Iterator[int]:
        """Read everything once; yields how many decisions were read, now and then."""
        known = self._manifests()
        if self._since:
            self._check_since(known)
        for manifest in known:
            if manifest.to_seq > self._since:
                self._read_file(manifest)
                yield self.decision_count
        self._positions.end_of_archive()
        query = (
            select(DecisionRow.__table__)
            .where(DecisionRow.portfolio_id == self._head.id, DecisionRow.seq > self._skipped(known))
            .order_by(DecisionRow.seq)
        )
        link, tell = self._link, self._positions.tell
        for rows in stream_rows(self._connection, query, _CHUNK):
            for row in rows:
                if type(row[1]) is not int:
                    at = self._expected
                    self._found(at, f"where decision {at} should be, one has the seq {row[1]!r:.50}, no whole number")
                    continue
                link(row)
                tell(row)
            yield self.decision_count
        self._end_block()
        self._check_facets()
        self._check_head()
        self._positions.finish()
        self._scopes.finish(*self._positions.sums())
        yield self.decision_count

    def _manifests(self) -> list[Manifest]:
        """What is known of the archive files, oldest first; those of which nothing can be known are found."""
        known = []
        for manifest in manifests(self._connection, self._head.id):
            wrong = misfit(ArchiveRow.__table__, manifest)
            if wrong is None:
                known.append(manifest)
            else:
                self._found(None, f"the manifest of archive file {manifest.file!r:.100} {wrong}")
        return known

    def _skipped(self, known: list[Manifest]) -> int:
        """Live decisions up to here are trusted; those that should be archived are not skipped, but found."""
        return self._since if not known or self._since > known[-1].to_seq else 0

    def _check_since(self, known: list[Manifest]) -> None:
        """The trusted head must still be in the chain."""
        seq, trusted = self._since, self._previous
        manifest = next((one for one in known if one.from_seq <= seq <= one.to_seq), None)
        try:
            if manifest is None:
                query = select(DecisionRow.hash).where(
                    DecisionRow.portfolio_id == self._head.id, DecisionRow.seq == seq
                )
                found = self._connection.execute(query).scalar()
            else:
                found = self._files.records(self._head.name, manifest)[seq - manifest.from_seq].hash
        except (ArchiveDamaged, *UNREADABLE) as error:
            self._found(seq, f"the trusted head at {seq} cannot be looked up: {error}")
            return
        if found != trusted:
            stands = "no decision stands there" if found is None else f"{found[:12]} stands there"
            self._found(seq, f"the trusted head says decision {seq} is {trusted[:12]}, {stands}: history was rewritten")
            self._broken = True

    def _read_file(self, manifest: Manifest) -> None:
        """One archive file: its decisions are links like any other, its end must be what the manifest says."""
        try:
            for record, position in self._files.entries(self._head.name, manifest):
                if record.seq > self._since:
                    self._link(record)
                    self._positions.tell_archived(record, position)
        except (ArchiveDamaged, *UNREADABLE) as error:
            self._found(
                max(self._expected, manifest.from_seq), f"decisions {manifest.from_seq} to {manifest.to_seq}: {error}"
            )
            self._end_block()
        else:
            if (self._expected - 1, self._previous) != (manifest.to_seq, manifest.last_hash):
                self._found(
                    manifest.to_seq,
                    f"the manifest says decision {manifest.to_seq} is {manifest.last_hash[:12]} and ends its file, "
                    f"which ends with decision {self._expected - 1}, {self._previous[:12]}",
                )
        self._expected, self._previous = manifest.to_seq + 1, manifest.last_hash

    def _link(self, record: Fields) -> None:
        """One decision must continue the chain, whatever stands for its portfolio: an archive's name, or a row's id."""
        (
            _, seq, command, _, outcome, reason, _, tags, _, _, _, _, _, _, _, _, _, _, decided_us,
            _, _, link,
        ) = record  # fmt: skip
        if seq != self._expected:
            self._found(self._expected, f"decision {self._expected} is missing; the next one is {seq}")
            self._end_block()
            self._check_facets()
        elif not self._broken and chain_hash(self._previous, self._named + fields_text(record[1:-1])) != link:
            self._found(seq, f"decision {seq} is not the one that was made: its hash does not match")
            self._broken = True  # one edit breaks every later link unless they were rewritten too; report it once
        else:
            self._broken = False
        self._previous, self._expected = link, seq + 1
        self.decision_count += 1
        self._last_us = decided_us
        self._scopes.tell(record)
        self._block.add((tags, command, outcome, reason or ""))
        if seq % BLOCK == 0:
            self._facets[seq // BLOCK] = self._end_block()
            if len(self._facets) == _BLOCKS_AT_ONCE:
                self._check_facets()

    def _end_block(self) -> set[_Facet]:
        """The facets of the decisions since the last block."""
        told, self._block = self._block, set()
        return told

    def _check_facets(self) -> None:
        """What history finds in each of the full blocks since the last check must be all that is in it."""
        if not self._facets:
            return
        query = (
            select(FacetBlockRow.block, FacetRow.tags, FacetRow.command, FacetRow.outcome, FacetRow.reason)
            .join(FacetBlockRow, FacetBlockRow.facet_id == FacetRow.id)
            .where(FacetRow.portfolio_id == self._head.id)
            .where(FacetBlockRow.block.between(min(self._facets), max(self._facets)))
        )
        noted: dict[int, set[_Facet]] = {block: set() for block in self._facets}
        for row in raw_rows(self._connection, query):
            noted.setdefault(row[0], set()).add(row[1:])
        for block, told in self._facets.items():
            first = (block - 1) * BLOCK + 1
            if first > self._since and (missing := told - noted[block]):
                what = f"decisions {first} to {block * BLOCK}: history cannot find {min(missing, key=repr)} among them"
                self._found(first, what, "facets")
        self._facets = {}

    def _check_head(self) -> None:
        last = self._expected - 1
        if self._head.last_us != (self._last_us or 0) and (self._last_us is not None or not self._since):
            self._found(None, f"the portfolio's time is {self._head.last_us}, its last decision's {self._last_us or 0}")
        if (self._head.last_seq, self._head.last_hash) != (last, self._previous):
            self._found(
                min(self._head.last_seq, last) + 1 if self._head.last_seq != last else None,
                f"the portfolio's head says {self._head.last_seq} decisions ending in {self._head.last_hash[:12]}, "
                f"the chain has {last} ending in {self._previous[:12]}",
            )
