"""Reads exposure over time in a bounded number of points, without losing a spike between two of them.

The decisions are divided into blocks of 1, 2, 4, 8, ... decisions, aligned to seq, so that a full block never changes.
Each block is one point: its last decision, with the lowest and highest exposure in it. The extremes of full blocks are
cached, so that a read fetches only new decisions. A read of a long time fetches about `READ_MAX` decisions of blocks
that are not cached yet, newest first, and reports from when on the extremes are complete.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from ledger_sizer.history.times import seq_before
from ledger_sizer.model.overview import ExposureLine, ExposurePoint
from ledger_sizer.model.times import from_us
from ledger_sizer.model.units import usd
from ledger_sizer.storage.tables import DecisionRow

POINTS_MAX = 240
"""Most blocks of an exposure line; the last decision before it may add one point."""

READ_MAX = 100_000
"""Decisions that one read fetches for the extremes between points."""

_CACHED_MAX = 20_000
_EXPOSURE_AFTER_E8 = DecisionRow.exposure_e8 + DecisionRow.held_delta_e8 + DecisionRow.open_delta_e8

_Extremes = tuple[int, int]
"""The lowest and the highest exposure after the decisions of a block, 1e-8 USD."""


class BlockExtremes:
    """Cache of the extremes of full blocks, by portfolio, block size and block. Threads may share it."""

    def __init__(self) -> None:
        self._cached: dict[tuple[int, int, int], _Extremes] = {}

    def get(self, portfolio_id: int, shift: int, blocks: Sequence[int]) -> dict[int, _Extremes]:
        """Return the cached ones of these blocks of 2 ** shift decisions."""
        found = {block: self._cached.get((portfolio_id, shift, block)) for block in blocks}
        return {block: extremes for block, extremes in found.items() if extremes is not None}

    def put(self, portfolio_id: int, shift: int, read: dict[int, _Extremes]) -> None:
        """Cache full blocks."""
        if len(self._cached) > _CACHED_MAX:
            self._cached.clear()
        self._cached.update({(portfolio_id, shift, block): extremes for block, extremes in read.items()})


def read_exposure_line(connection: Connection, portfolio: Any, since_us: int, cache: BlockExtremes) -> ExposureLine:
    """Read the exposure line of a portfolio (its row) from a time on. The first point is the state at that time."""
    first, last = max(seq_before(connection, portfolio.id, 1, since_us), 1), int(portfolio.last_seq)
    shift = 0
    while ((last - 1) >> shift) - ((first - 1) >> shift) >= POINTS_MAX:
        shift += 1
    blocks = range((first - 1) >> shift, ((last - 1) >> shift) + 1)
    ends = {min((block + 1) << shift, last): block for block in blocks}
    extremes = {} if shift == 0 else _block_extremes(connection, portfolio.id, shift, blocks, (first, last), cache)
    columns = (
        DecisionRow.decided_us,
        DecisionRow.seq,
        _EXPOSURE_AFTER_E8,
        DecisionRow.headroom_e8,
        DecisionRow.exposure_e8,
    )
    wanted = (DecisionRow.portfolio_id == portfolio.id, DecisionRow.seq.in_({first, *ends}))
    points, exact_from = [], None
    for decided_us, seq, after_e8, headroom_e8, before_e8 in connection.execute(
        select(*columns).where(*wanted).order_by(DecisionRow.seq)
    ):
        low_e8, high_e8 = extremes.get(ends[seq], (after_e8, after_e8)) if seq in ends else (after_e8, after_e8)
        if shift and seq in ends and ends[seq] not in extremes:
            exact_from = from_us(decided_us)
        cap = None if headroom_e8 is None else usd(headroom_e8 + before_e8)
        points.append(ExposurePoint(from_us(decided_us), seq, usd(after_e8), cap, usd(low_e8), usd(high_e8)))
    return ExposureLine(from_us(since_us), tuple(points), exact_from)


def _block_extremes(
    connection: Connection, portfolio_id: int, shift: int, blocks: range, ends: tuple[int, int], cache: BlockExtremes
) -> dict[int, _Extremes]:
    """Return the extremes of the blocks between two seqs: of those cached, and of the newest of the others."""
    first, last = ends
    full = [block for block in blocks if (block << shift) >= first - 1 and (block + 1) << shift <= last]
    found = cache.get(portfolio_id, shift, full)
    new = [block for block in reversed(blocks) if block not in found][: max(READ_MAX >> shift, 2)]
    if not new:
        return found
    low, high = max((new[-1] << shift) + 1, first), min((new[0] + 1) << shift, last)
    block = ((DecisionRow.seq - 1) // (1 << shift)).label("block")
    query = (
        select(block, func.min(_EXPOSURE_AFTER_E8), func.max(_EXPOSURE_AFTER_E8))
        .where(DecisionRow.portfolio_id == portfolio_id, DecisionRow.seq.between(low, high))
        .group_by("block")
    )
    read = {at: (int(lowest), int(highest)) for at, lowest, highest in connection.execute(query)}
    cache.put(portfolio_id, shift, {at: read[at] for at in full if at in read})
    return {**found, **read}
