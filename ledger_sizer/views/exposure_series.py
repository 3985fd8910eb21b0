"""Exposure over time in at most `POINTS_MAX` points, and no spike between two of them is lost.

The decisions of the time are cut into blocks of 1, 2, 4, 8, ... of them, aligned to seq, so that a block which is full
never changes again. A block is one point: its last decision, with the lowest and highest exposure in it. What a full
block held is kept, so that a look reads only what is new; a look at a long time reads `READ_MAX` decisions of the
blocks it does not know yet, newest first, and says from when on it knows them all.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, func, select

from ledger_sizer.model.domain import from_us
from ledger_sizer.model.overview import ExposureLine, ExposurePoint
from ledger_sizer.model.units import usd
from ledger_sizer.storage.tables import DecisionRow

POINTS_MAX = 240
"""Points of the line of exposure."""

READ_MAX = 100_000
"""Decisions that one look reads for what lies between the points."""

_KEPT_MAX = 20_000
_AFTER_E8 = DecisionRow.exposure_e8 + DecisionRow.held_delta_e8 + DecisionRow.open_delta_e8

_Extremes = tuple[int, int]
"""The lowest and the highest exposure after the decisions of a block, 1e-8 USD."""


class BlockExtremes:
    """What full blocks of decisions held, by portfolio, size and place. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int], _Extremes] = {}

    def known(self, portfolio_id: int, shift: int, blocks: Sequence[int]) -> dict[int, _Extremes]:
        """Those of these blocks that were read before."""
        found = {block: self._known.get((portfolio_id, shift, block)) for block in blocks}
        return {block: extremes for block, extremes in found.items() if extremes is not None}

    def keep(self, portfolio_id: int, shift: int, read: dict[int, _Extremes]) -> None:
        """Remember full blocks."""
        if len(self._known) > _KEPT_MAX:
            self._known.clear()
        self._known.update({(portfolio_id, shift, block): extremes for block, extremes in read.items()})


def read_exposure_line(connection: Connection, portfolio: Any, since_us: int, peaks: BlockExtremes) -> ExposureLine:
    """The line of a portfolio's row from a time on; the first point is what held then."""
    first, last = max(_last_before(connection, portfolio, since_us), 1), int(portfolio.last_seq)
    shift = 0
    while ((last - 1) >> shift) - ((first - 1) >> shift) >= POINTS_MAX:
        shift += 1
    blocks = range((first - 1) >> shift, ((last - 1) >> shift) + 1)
    ends = {min((block + 1) << shift, last): block for block in blocks}
    extremes = {} if shift == 0 else _extremes(connection, portfolio.id, shift, blocks, (first, last), peaks)
    columns = (DecisionRow.decided_us, DecisionRow.seq, _AFTER_E8, DecisionRow.headroom_e8, DecisionRow.exposure_e8)
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


def _extremes(
    connection: Connection, portfolio_id: int, shift: int, blocks: range, ends: tuple[int, int], peaks: BlockExtremes
) -> dict[int, _Extremes]:
    """The extremes of the blocks between two seqs: of those that are known, and of the newest of the others."""
    first, last = ends
    full = [block for block in blocks if (block << shift) >= first - 1 and (block + 1) << shift <= last]
    found = peaks.known(portfolio_id, shift, full)
    new = [block for block in reversed(blocks) if block not in found][: max(READ_MAX >> shift, 2)]
    if not new:
        return found
    low, high = max((new[-1] << shift) + 1, first), min((new[0] + 1) << shift, last)
    block = ((DecisionRow.seq - 1) // (1 << shift)).label("block")
    query = (
        select(block, func.min(_AFTER_E8), func.max(_AFTER_E8))
        .where(DecisionRow.portfolio_id == portfolio_id, DecisionRow.seq.between(low, high))
        .group_by("block")
    )
    read = {at: (int(lowest), int(highest)) for at, lowest, highest in connection.execute(query)}
    peaks.keep(portfolio_id, shift, {at: read[at] for at in full if at in read})
    return {**found, **read}


def _last_before(connection: Connection, portfolio: Any, moment_us: int) -> int:
    """The seq of the last decision before a time, 0 for none: time grows with seq, so halving finds it."""
    low, high = 0, int(portfolio.last_seq)
    while low < high:
        middle = (low + high + 1) // 2
        query = select(DecisionRow.decided_us).where(
            DecisionRow.portfolio_id == portfolio.id, DecisionRow.seq >= middle, DecisionRow.seq <= high
        )
        decided_us = connection.execute(query.order_by(DecisionRow.seq).limit(1)).scalar()
        if decided_us is not None and decided_us < moment_us:
            low = middle
        else:
            high = middle - 1
    return low
