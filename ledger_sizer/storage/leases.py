"""Grants leases: of several replicas on one database, one at a time runs a kind of scheduled work.

A lease is a row with an owner, an end and an epoch. A new owner raises the epoch, which is the fencing token: a write
made under an old lease is recognised however late it arrives. To check it, call `Lease.holds` in the transaction of
the write. For commands sent to the ledger in a `fenced` block, the ledger checks it. Times are the database's, which
all replicas share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, case, delete, insert, or_, select, update

from ledger_sizer.model.errors import Unavailable
from ledger_sizer.storage.database import Conflict, database_now_us, write_transaction
from ledger_sizer.storage.tables import LeaseRow

_PROBE_BYTES = 64 * 1024
_SECONDS_MAX = 3600
"""The longest lease that the settings allow."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as granted to an owner, in one epoch."""

    name: str
    owner: str
    epoch: int

    def holds(self, connection: Connection) -> bool:
        """Whether it is still the present lease. Locks its row, so that this stays true until the transaction ends."""
        query = select(LeaseRow.epoch).where(
            LeaseRow.name == self.name, LeaseRow.owner == self.owner, LeaseRow.until_us > database_now_us()
        )
        return connection.execute(query.with_for_update()).scalar() == self.epoch


class LeaseLost(Unavailable):
    """The lease ended during the work. Another replica may have started the same work, so this one must not write."""


fence_var: ContextVar[Lease | None] = ContextVar("ledger_sizer_fence", default=None)
"""The lease that the running code works under. Its writes take effect only while the lease is held."""


@contextmanager
def fenced(lease: Lease) -> Iterator[None]:
    """Send the commands of this block under a lease: each is committed while it is held, or raises `LeaseLost`."""
    token = fence_var.set(lease)
    try:
        yield
    finally:
        fence_var.reset(token)


def acquire_lease(engine: Engine, name: str, owner: str, seconds: int) -> Lease | None:
    """Take or prolong a lease. None while another owner holds it. Raises `Unavailable`."""
    ends_us = database_now_us() + seconds * 1_000_000
    now_us = database_now_us()
    # An end later than any lease can have is that of a wrong clock: nobody could take that lease over for years.
    wrong_us = now_us + 2 * _SECONDS_MAX * 1_000_000
    free = or_(LeaseRow.owner == owner, LeaseRow.until_us <= now_us, LeaseRow.until_us > wrong_us)
    epoch = LeaseRow.epoch
    mine = (LeaseRow.owner == owner) & (LeaseRow.until_us > database_now_us())
    next_epoch = case((mine, epoch), else_=epoch + 1)
    take = (
        update(LeaseRow)
        .where(LeaseRow.name == name, free)
        .values(owner=owner, until_us=ends_us, epoch=next_epoch)
        .returning(epoch)
    )
    try:
        with write_transaction(engine, f"read the lease {name!r}") as connection:
            taken = connection.execute(take).scalar()
            if taken is not None:
                return Lease(name, owner, taken)
            if connection.execute(select(epoch).where(LeaseRow.name == name)).scalar() is not None:
                return None
            connection.execute(insert(LeaseRow).values(name=name, owner=owner, until_us=ends_us, epoch=1))
            return Lease(name, owner, 1)
    except Conflict:
        return None  # another replica inserted the row first


def probe_write(engine: Engine, name: str) -> None:
    """Write, commit and remove a row that needs several pages. Raises `Unavailable` where that is not possible.

    name: of the row, one for each caller. A small row would still fit where the next batch does not.
    """
    remove = delete(LeaseRow).where(LeaseRow.name == name)
    with write_transaction(engine, "write") as connection:
        connection.execute(remove)
        connection.execute(insert(LeaseRow).values(name=name, owner="." * _PROBE_BYTES, until_us=0, epoch=1))
    with write_transaction(engine, "write") as connection:
        connection.execute(remove)


def release_lease(engine: Engine, lease: Lease) -> None:
    """End a lease now, so that another replica need not wait for its end. Raises `Unavailable`."""
    mine = (LeaseRow.name == lease.name, LeaseRow.owner == lease.owner, LeaseRow.epoch == lease.epoch)
    with write_transaction(engine, f"give up the lease {lease.name!r}") as connection:
        connection.execute(update(LeaseRow).where(*mine).values(until_us=database_now_us()))
