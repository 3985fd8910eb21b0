"""Leases: of several replicas on one database, one at a time runs a kind of scheduled work.

A lease is a row with an owner, an end and an epoch. Taking it over raises the epoch, so that a write made under an old
lease can be told from one made under the present one, however late it arrives: check `Lease.holds` in the transaction
of the write. What is sent to the ledger in a `fenced` block is checked there. Times are the database's, which all
replicas share.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, case, insert, or_, select, update
from sqlalchemy.exc import DBAPIError, IntegrityError

from ledger_sizer.model.errors import Unavailable
from ledger_sizer.storage.database import database_now_us
from ledger_sizer.storage.tables import LeaseRow


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease as granted: whose, and in which epoch."""

    name: str
    owner: str
    epoch: int

    def holds(self, connection: Connection) -> bool:
        """Whether it is still the present one; locks its row, so that it stays so until the transaction ends."""
        query = select(LeaseRow.epoch).where(
            LeaseRow.name == self.name, LeaseRow.owner == self.owner, LeaseRow.until_us > database_now_us()
        )
        return connection.execute(query.with_for_update()).scalar() == self.epoch


class LeaseLost(Unavailable):
    """The work took so long that another may have begun it anew: it must not write."""


fence_var: ContextVar[Lease | None] = ContextVar("ledger_sizer_fence", default=None)
"""The lease under which the present code works; what it writes takes effect only while that is held."""


@contextmanager
def fenced(lease: Lease) -> Iterator[None]:
    """Every command sent to the ledger in this block is committed under this lease, or answered with `LeaseLost`."""
    token = fence_var.set(lease)
    try:
        yield
    finally:
        fence_var.reset(token)


def acquire_lease(engine: Engine, name: str, owner: str, seconds: int) -> Lease | None:
    """Take or prolong a lease; None while another owner's has not ended. Raises `Unavailable`."""
    ends_us = database_now_us() + seconds * 1_000_000
    free = or_(LeaseRow.owner == owner, LeaseRow.until_us <= database_now_us())
    epoch = LeaseRow.epoch
    mine = (LeaseRow.owner == owner) & (LeaseRow.until_us > database_now_us())
    raised = case((mine, epoch), else_=epoch + 1)
    take = (
        update(LeaseRow)
        .where(LeaseRow.name == name, free)
        .values(owner=owner, until_us=ends_us, epoch=raised)
        .returning(epoch)
    )
    try:
        with engine.begin() as connection:
            taken = connection.execute(take).scalar()
            if taken is not None:
                return Lease(name, owner, taken)
            if connection.execute(select(epoch).where(LeaseRow.name == name)).scalar() is not None:
                return None
            connection.execute(insert(LeaseRow).values(name=name, owner=owner, until_us=ends_us, epoch=1))
            return Lease(name, owner, 1)
    except IntegrityError:
        return None  # another replica made the row first
    except DBAPIError as error:
        raise Unavailable(f"cannot read the lease {name!r}: {str(error.orig).strip()}") from None


def release_lease(engine: Engine, lease: Lease) -> None:
    """End a lease now, so that another replica need not wait for it. Raises `Unavailable`."""
    mine = (LeaseRow.name == lease.name, LeaseRow.owner == lease.owner, LeaseRow.epoch == lease.epoch)
    try:
        with engine.begin() as connection:
            connection.execute(update(LeaseRow).where(*mine).values(until_us=database_now_us()))
    except DBAPIError as error:
        raise Unavailable(f"cannot give up the lease {lease.name!r}: {str(error.orig).strip()}") from None
