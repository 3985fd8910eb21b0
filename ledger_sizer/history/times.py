"""Finds decisions by their time.

A portfolio's time runs backwards only where a decision `step_back` says so: the clock had been wrong. These decisions
part the chain into runs within which time never runs backwards, so that each run can be searched by halving. There is
one run, but for a ledger whose clock was set back by more than a minute.

A moment then stands for a place in the chain: after the last decision made before it. What was decided before that
place at a later time, by the wrong clock, is among what came before the moment.
"""

from collections.abc import Iterator

from sqlalchemy import Connection, func, select

from ledger_sizer.model.commands import STEP_BACK
from ledger_sizer.model.tags import NO_TAGS
from ledger_sizer.storage.tables import DecisionRow, FacetBlockRow, FacetRow

BLOCK = 1024
"""Decisions of one facet block. The triggers of migration 0005 have the same number."""


def seq_before(connection: Connection, portfolio_id: int, first: int, us: int) -> int:
    """Return the last seq decided before `us` among live decisions from `first` on, `first - 1` if there is none."""
    for start, end in reversed(_runs(connection, portfolio_id, first)):
        found = _search(connection, portfolio_id, start, end, us)
        if found >= start:
            return found
    return first - 1


def last_older(connection: Connection, portfolio_id: int, first: int, before_us: int, now_us: int) -> int:
    """Return the last live seq from `first` on up to which all decisions are older than `before_us`; else `first - 1`.

    A time after `now_us` came from a wrong clock and tells nothing of its decision's age. Such a decision is older if
    a later one is.
    """
    last = first - 1
    for start, end in _runs(connection, portfolio_id, first):
        found = _search(connection, portfolio_id, start, end, before_us)
        last = found if found >= start else last
        if found < end and (_next_decided_us(connection, portfolio_id, found + 1, end) or 0) <= now_us:
            break
    return last


def _runs(connection: Connection, portfolio_id: int, first: int) -> list[tuple[int, int]]:
    """Return the live decisions from `first` on as ranges of seq, in order, each with times that never decrease."""
    of = DecisionRow.portfolio_id == portfolio_id
    last = connection.execute(select(func.max(DecisionRow.seq)).where(of)).scalar() or 0
    if last < first:
        return []
    starts = [first, *(seq for seq in _step_backs(connection, portfolio_id, first, last) if seq > first)]
    return list(zip(starts, [*(start - 1 for start in starts[1:]), last], strict=True))


def _step_backs(connection: Connection, portfolio_id: int, first: int, last: int) -> Iterator[int]:
    """Yield the seqs of the live decisions `step_back`, in order. Facets name the blocks that have one."""
    blocks = (
        select(FacetBlockRow.block)
        .join_from(FacetRow, FacetBlockRow, FacetBlockRow.facet_id == FacetRow.id)
        .where(FacetRow.portfolio_id == portfolio_id, FacetRow.tags == NO_TAGS.text, FacetRow.command == STEP_BACK)
        .where(FacetBlockRow.block > (first - 1) // BLOCK)
        .order_by(FacetBlockRow.block)
    )
    full = last // BLOCK
    found = [block for block in connection.execute(blocks).scalars() if block <= full]
    for block in [*found, full + 1]:  # the last block is not full yet, so it has no facets
        query = select(DecisionRow.seq).where(
            DecisionRow.portfolio_id == portfolio_id,
            DecisionRow.seq.between(max((block - 1) * BLOCK + 1, first), block * BLOCK),
            DecisionRow.command == STEP_BACK,
        )
        yield from connection.execute(query.order_by(DecisionRow.seq)).scalars()


def _search(connection: Connection, portfolio_id: int, start: int, end: int, us: int) -> int:
    """Return the last seq of a run decided before `us`, `start - 1` if there is none. A binary search."""
    low, high = start - 1, end
    while low < high:
        middle = (low + high + 1) // 2
        decided_us = _next_decided_us(connection, portfolio_id, middle, high)
        if decided_us is not None and decided_us < us:
            low = middle
        else:
            high = middle - 1
    return low


def _next_decided_us(connection: Connection, portfolio_id: int, low: int, high: int) -> int | None:
    """Return the time of the first live decision from `low` to `high`: those up to some seq may be archived."""
    query = select(DecisionRow.decided_us).where(
        DecisionRow.portfolio_id == portfolio_id, DecisionRow.seq.between(low, high)
    )
    decided_us: int | None = connection.execute(query.order_by(DecisionRow.seq).limit(1)).scalar()
    return decided_us
