"""Verifies a ledger: its decisions are those that were made, and its rows are what the decisions say.

It reads one snapshot once, archive files first, in memory that does not grow with history, and checks:

1. the chain: every decision in order, seq without gaps, each hash recomputed from the one before, and the head;
2. the positions: each row against the decisions about it (see `positions`);
3. the scopes: what each decision saw of them against what the decisions before left, each counter against the sum of
   its position rows, each cap and status against the last decision (see `scopes`);
4. the facets that history is searched by: a missing facet would hide decisions from a filter;
5. the schema: the triggers and constraints that refuse such changes (see `schema`).

It repairs nothing. A finding names the first decision, by seq, that the wrong row concerns. With a trusted head, the
decisions before it are not read again: the head must still be in the chain, and all later decisions must follow.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Engine, select

from ledger_sizer.history.archive_files import ArchiveDamaged, ArchiveFiles, Manifest
from ledger_sizer.history.times import BLOCK
from ledger_sizer.model.commands import STEP_BACK
from ledger_sizer.model.decisions import FIELD_SEPARATOR, GENESIS_HASH, Fields, chain_hash, fields_text, is_head
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.model.names import DESK, portfolio_or_desk
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.model.verification import Finding, VerifyReport
from ledger_sizer.storage.database import raw_rows, read_transaction
from ledger_sizer.storage.tables import (
    DESK_ID,
    ArchiveRow,
    DecisionRow,
    FacetBlockRow,
    FacetRow,
    PortfolioRow,
    PositionRow,
    ScopeRow,
)
from ledger_sizer.verify.positions import READ_ERRORS, PositionCheck, find_wrong_type
from ledger_sizer.verify.rows import PortfolioRows, portfolio_groups, read_group, sound_manifests
from ledger_sizer.verify.schema import find_schema_changes
from ledger_sizer.verify.scopes import ScopeCheck

Progress = Callable[[int, int], None]
"""Called with (decisions done, decisions in total)."""
Head = tuple[int, str]
"""A chain head: the seq and the hash of a decision."""
Heads = Mapping[str, Head]
"""Chain heads by portfolio."""

_BLOCKS_AT_ONCE = 16
"""Full blocks whose facets are looked up in one query. One query per block took a tenth of the whole time."""
_FINDINGS_MAX = 100

_Facet = tuple[str, str, str, str, str]
"""Values that history is searched by: tags, command, outcome, reason (empty for none)."""


def heads_of(engine: Engine, portfolio: str | None = None) -> dict[str, tuple[int, str]]:
    """Return the current chain heads, of one portfolio or of all. Raises `NotFound`, `Unavailable`.

    A chain without decisions, such as the desk's at first, has no head.
    """
    query = select(PortfolioRow.name, PortfolioRow.last_seq, PortfolioRow.last_hash).order_by(PortfolioRow.id)
    if portfolio is not None:
        query = query.where(PortfolioRow.name == portfolio_or_desk(portfolio))
    with read_transaction(engine) as connection:
        rows = connection.execute(query).all()
    if portfolio is not None and not rows:
        raise NotFound(f"no portfolio {portfolio!r}")
    return _heads_in(rows)


def _heads_in(portfolios: Sequence[Any]) -> dict[str, tuple[int, str]]:
    """Return the heads in rows of portfolios."""
    return {row.name: (row.last_seq, row.last_hash) for row in portfolios if row.last_seq}


def verify(
    engine: Engine,
    portfolio: str | None = None,
    progress: Progress | None = None,
    *,
    since: Heads | None = None,
    kept: Mapping[str, Collection[Head]] | None = None,
    files: ArchiveFiles | None = None,
) -> VerifyReport:
    """Verify one portfolio, or all. Raises `NotFound` if it does not exist, `Unavailable` without the database.

    since: trusted heads to begin at; a portfolio without one is read from its first decision. kept: more trusted heads
    by portfolio, which must stand in the chain too. Raises `InvalidRequest` for a value that cannot be a head.
    """
    since, kept, files = since or {}, kept or {}, files or ArchiveFiles()
    _require_heads(since, kept)
    # One snapshot for all reads: writers go on meanwhile.
    snapshot = engine.execution_options(isolation_level=_snapshot_level(engine))
    with read_transaction(snapshot) as connection:
        heads, findings = _portfolio_rows(connection, portfolio)
        total = sum(max(head.last_seq - _begin(head, since)[0], 0) for head in heads)
        decisions = positions = 0
        for group in portfolio_groups(heads):
            after = {head.id: _begin(head, since)[0] for head in group}
            trusted = {head.id: _trusted(head.name, since, kept) for head in group}
            seqs = {number: [seq for seq, _ in found] for number, found in trusted.items()}
            for head, rows in read_group(connection, group, after, seqs):
                check = _PortfolioCheck(connection, head, rows, _begin(head, since), trusted[head.id], files)
                for done in check.read():
                    if progress is not None:
                        progress(decisions + done, total)
                decisions += check.decision_count
                positions += check.position_count
                findings += check.findings()
        if portfolio is None:
            findings += _orphans(connection)
            gone = {*since, *kept} - {*connection.execute(select(PortfolioRow.name)).scalars()}
            for name in sorted(gone):
                newest = _trusted(name, since, kept)[-1]
                findings.append(Finding(name, newest[0], "the trusted head's portfolio is gone"))
        if portfolio in (None, DESK):
            findings += _missing_desk(connection)
        findings += find_schema_changes(connection)
        return VerifyReport(tuple(findings), decisions, positions, _heads_in(heads))


def _require_heads(since: Mapping[str, Any], kept: Mapping[str, Collection[Any]]) -> None:
    for name, head in [*since.items(), *((name, head) for name, heads in kept.items() for head in heads)]:
        if not (isinstance(head, tuple) and len(head) == 2 and is_head(*head)):
            raise InvalidRequest(f"since: the head of {name!r} must be a seq and its hash, got {head!r}", field="since")


def _begin(head: Any, since: Heads) -> Head:
    """Return the trusted head to begin at. One beyond the present end vouches for nothing: all is read."""
    trusted = since.get(head.name, (0, GENESIS_HASH))
    return trusted if trusted[0] <= head.last_seq else (0, GENESIS_HASH)


def _trusted(name: str, since: Heads, kept: Mapping[str, Collection[Head]]) -> list[Head]:
    """Return all trusted heads of a portfolio, by seq."""
    return sorted({*kept.get(name, ()), *([since[name]] if name in since else ())})


def _portfolio_rows(connection: Connection, portfolio: str | None) -> tuple[list[Any], list[Finding]]:
    """Return the rows of the portfolios, and findings for rows with values so wrong that nothing can be checked."""
    query = select(PortfolioRow.__table__).order_by(PortfolioRow.id)
    if portfolio is not None:
        query = query.where(PortfolioRow.name == portfolio_or_desk(portfolio))
    heads, findings = [], []
    for row in connection.execute(query):
        wrong = find_wrong_type(PortfolioRow.__table__, row)
        if wrong is None:
            heads.append(row)
            continue
        name = row.name if isinstance(row.name, str) else f"(id {row.id})"
        findings.append(Finding(name, None, f"the portfolio's row {wrong}; nothing else of it was checked"))
    if portfolio not in (None, DESK) and not heads and not findings:
        raise NotFound(f"no portfolio {portfolio!r}")
    return heads, findings


def _orphans(connection: Connection) -> list[Finding]:
    """Find rows whose portfolio's row is missing."""
    findings = []
    for row in (DecisionRow, PositionRow, ScopeRow):
        owner = select(PortfolioRow.id).where(PortfolioRow.id == row.portfolio_id).exists()
        found = connection.execute(select(row.portfolio_id).where(~owner).limit(1)).scalar()
        if found is not None:
            what = f"{row.__tablename__} of a portfolio whose own row is missing"
            findings.append(Finding(f"(id {found})", None, what))
    return findings


def _missing_desk(connection: Connection) -> list[Finding]:
    """Find that the desk, which migrations make, is gone: without its row nothing is granted."""
    desk = select(PortfolioRow.id).join(ScopeRow, ScopeRow.portfolio_id == PortfolioRow.id)
    desk = desk.where(PortfolioRow.id == DESK_ID, PortfolioRow.name == DESK, ScopeRow.scope == PORTFOLIO_SCOPE)
    gone = connection.execute(desk).first() is None
    return [Finding(DESK, None, "a row of the desk is missing")] if gone else []


def _snapshot_level(engine: Engine) -> str:
    return "SERIALIZABLE" if engine.dialect.name == "sqlite" else "REPEATABLE READ"


class _PortfolioCheck:
    """Reads one portfolio and collects its findings."""

    def __init__(
        self,
        connection: Connection,
        head: Any,
        rows: PortfolioRows,
        since: Head,
        trusted: Sequence[Head],
        files: ArchiveFiles,
    ) -> None:
        self._connection = connection
        self._head = head
        self._rows = rows
        self._since, self._previous = since
        self._trusted = trusted
        self._files = files
        self._findings: dict[str, list[Finding]] = {part: [] for part in ("chain", "positions", "scopes", "facets")}
        self._positions = PositionCheck(
            connection, head, self._since, rows.positions, lambda seq, what: self._report(seq, what, "positions")
        )
        self._expected = self._since + 1
        self._broken = False
        self._last_us: int | None = None
        self._text_start = head.name + FIELD_SEPARATOR
        self._scopes = ScopeCheck(whole=not self._since, report=lambda seq, what: self._report(seq, what, "scopes"))
        self._block_facets: set[_Facet] = set()  # of the block that is being read
        self._unchecked_facets: dict[int, set[_Facet]] = {}  # by full block
        self.decision_count = 0

    def _report(self, seq: int | None, what: str, part: str = "chain") -> None:
        if len(self._findings[part]) < _FINDINGS_MAX:
            self._findings[part].append(Finding(self._head.name, seq, what))

    def findings(self) -> list[Finding]:
        """Return the findings, those of the chain first: a wrong decision may explain the others."""
        return [finding for part in self._findings.values() for finding in part]

    @property
    def position_count(self) -> int:
        """Number of position rows read, archived or live."""
        return self._positions.count

    def read(self) -> Iterator[int]:
        """Read everything once. Yields the number of decisions read so far, after each file and each chunk of rows."""
        known = self._manifests()
        self._check_trusted_heads(known)
        for manifest in known:
            if manifest.to_seq > self._since:
                self._read_file(manifest)
                yield self.decision_count
        self._positions.end_of_archive()
        check_link, add_to_positions = self._check_link, self._positions.add
        for rows in self._rows.decisions:
            for row in rows:
                if type(row[1]) is not int:
                    at = self._expected
                    self._report(at, f"where decision {at} should be, one has the seq {row[1]!r:.50}, no whole number")
                    continue
                check_link(row)
                add_to_positions(row)
                if self._scopes.accounts:
                    self._scopes.check_promise(self._positions.changed)
            yield self.decision_count
        self._end_block()
        self._check_facets()
        self._check_head()
        self._positions.finish()
        self._scopes.finish(self._rows.scopes, *self._positions.sums(self._rows.sums))
        yield self.decision_count

    def _manifests(self) -> list[Manifest]:
        """Return the manifests of the archive files, oldest first. A manifest with wrong types becomes a finding."""
        known = sound_manifests(self._rows.manifests)
        for manifest in self._rows.manifests:
            if manifest not in known:
                wrong = find_wrong_type(ArchiveRow.__table__, manifest)
                self._report(None, f"the manifest of archive file {manifest.file!r:.100} {wrong}")
        return known

    def _check_trusted_heads(self, known: list[Manifest]) -> None:
        """Check that the trusted heads are still in the chain. Names the first that is not, and how many are not."""
        wrong = []
        for seq, trusted in self._trusted:
            try:
                found = self._hash_at(seq, known)
            except (ArchiveDamaged, *READ_ERRORS) as error:
                self._report(seq, f"the trusted head at {seq} cannot be looked up: {error}")
                return
            if found != trusted and seq:
                wrong.append((seq, trusted, found))
        if not wrong:
            return
        seq, trusted, found = wrong[0]
        if found is not None:
            why = f"{found[:12]} stands there"
        elif seq > self._head.last_seq:
            why = f"and the chain ends at {self._head.last_seq}, the newest decisions were cut off"
        else:
            why = "no decision stands there"
        further = f" ({len(wrong) - 1} later heads do not stand either)" if len(wrong) > 1 else ""
        self._report(
            seq, f"the trusted head says decision {seq} is {trusted[:12]}, {why}: history was rewritten{further}"
        )
        for number, _, stands in wrong:
            if number == self._since:  # what follows is compared with what stands there now
                self._previous, self._broken = stands or self._previous, stands is None

    def _hash_at(self, seq: int, known: list[Manifest]) -> str | None:
        manifest = next((file for file in known if file.from_seq <= seq <= file.to_seq), None)
        if manifest is None:
            return self._rows.hashes.get(seq)
        return self._files.records(self._head.name, manifest)[seq - manifest.from_seq].hash

    def _read_file(self, manifest: Manifest) -> None:
        """Check one archive file: its decisions continue the chain, and it ends as its manifest says."""
        first_seq, times, positions = None, [], 0
        try:
            for record, position in self._files.entries(self._head.name, manifest):
                first_seq = first_seq or record.seq
                times.append(record.decided_us)
                positions += position is not None
                if record.seq > self._since:
                    self._check_link(record)
                    self._positions.add_archived(record, position)
                    if self._scopes.accounts:
                        self._scopes.check_promise(self._positions.changed)
        except (ArchiveDamaged, *READ_ERRORS) as error:
            self._report(
                max(self._expected, manifest.from_seq), f"decisions {manifest.from_seq} to {manifest.to_seq}: {error}"
            )
            self._end_block()
        else:
            if (self._expected - 1, self._previous) != (manifest.to_seq, manifest.last_hash):
                self._report(
                    manifest.to_seq,
                    f"the manifest says decision {manifest.to_seq} is {manifest.last_hash[:12]} and ends its file, "
                    f"which ends with decision {self._expected - 1}, {self._previous[:12]}",
                )
            elif times:
                says = (manifest.from_seq, manifest.from_us, manifest.to_us, manifest.positions)
                has = (first_seq, min(times), max(times), positions)
                if says != has:
                    what = "its first seq, earliest time, latest time and number of positions are"
                    self._report(manifest.from_seq, f"the manifest of {manifest.file!r:.100}: {what} {has}, not {says}")
        self._expected, self._previous = manifest.to_seq + 1, manifest.last_hash

    def _check_link(self, record: Fields) -> None:
        """Check that one decision continues the chain. Its first field is ignored: a name in files, an id in rows."""
        (
            _, seq, command, _, outcome, reason, _, tags, _, _, _, _, _, _, _, _, _, _, decided_us,
            _, _, actor, _, _, hash_,
        ) = record  # fmt: skip
        if seq != self._expected:
            self._report(self._expected, f"decision {self._expected} is missing; the next one is {seq}")
            self._end_block()
            self._check_facets()
        elif not self._broken and chain_hash(self._previous, self._text_start + fields_text(record[1:-1])) != hash_:
            self._report(seq, f"decision {seq} is not the one that was made: its hash does not match")
            self._broken = True  # an edit breaks every later link that was not rewritten too; report it once
        else:
            self._broken = False
        self._previous, self._expected = hash_, seq + 1
        self.decision_count += 1
        if type(decided_us) is type(self._last_us) is int and decided_us < self._last_us and command != STEP_BACK:
            self._report(seq, f"the time of decision {seq} is before that of the last, and no {STEP_BACK} says why")
        self._last_us = decided_us
        self._scopes.add(record)
        self._block_facets.add((tags, command, outcome, reason or "", actor or ""))
        if seq % BLOCK == 0:
            self._unchecked_facets[seq // BLOCK] = self._end_block()
            if len(self._unchecked_facets) == _BLOCKS_AT_ONCE:
                self._check_facets()

    def _end_block(self) -> set[_Facet]:
        """Start a new block. Returns the facets of the decisions since the last one."""
        facets, self._block_facets = self._block_facets, set()
        return facets

    def _check_facets(self) -> None:
        """Check that the database has every facet of the full blocks since the last check."""
        if not self._unchecked_facets:
            return
        query = (
            select(
                FacetBlockRow.block, FacetRow.tags, FacetRow.command, FacetRow.outcome, FacetRow.reason, FacetRow.actor
            )
            .join(FacetBlockRow, FacetBlockRow.facet_id == FacetRow.id)
            .where(FacetRow.portfolio_id == self._head.id)
            .where(FacetBlockRow.block.between(min(self._unchecked_facets), max(self._unchecked_facets)))
        )
        stored: dict[int, set[_Facet]] = {block: set() for block in self._unchecked_facets}
        for row in raw_rows(self._connection, query):
            stored.setdefault(row[0], set()).add(row[1:])
        for block, facets in self._unchecked_facets.items():
            first = (block - 1) * BLOCK + 1
            if first > self._since and (missing := facets - stored[block]):
                what = f"decisions {first} to {block * BLOCK}: history cannot find {min(missing, key=repr)} among them"
                self._report(first, what, "facets")
        self._unchecked_facets = {}

    def _check_head(self) -> None:
        last = self._expected - 1
        if self._head.last_us != (self._last_us or 0) and (self._last_us is not None or not self._since):
            self._report(
                None, f"the portfolio's time is {self._head.last_us}, its last decision's {self._last_us or 0}"
            )
        if (self._head.last_seq, self._head.last_hash) != (last, self._previous):
            self._report(
                min(self._head.last_seq, last) + 1 if self._head.last_seq != last else None,
                f"the portfolio's head says {self._head.last_seq} decisions ending in {self._head.last_hash[:12]}, "
                f"the chain has {last} ending in {self._previous[:12]}",
            )
