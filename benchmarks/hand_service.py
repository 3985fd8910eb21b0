"""The service a user would write by hand: FastAPI, SQLAlchemy, `FOR UPDATE`, `SUM`.

    python -m benchmarks.hand_service DATABASE_URL

Lock the cap, add up the live positions, insert, commit; release under the same lock. Plain `def` endpoints in
FastAPI's thread pool, a pooled session each (opened in the endpoint: with a session dependency 64 clients deadlock on
the thread that would commit). It is as careful as it has to be for its cap
to hold (SQLite begins with `BEGIN IMMEDIATE`), and it leaves out keys, expiry, scopes, history and access control.
"""

import socket
import sys
from decimal import Decimal
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import BigInteger, Engine, ForeignKey, Index, String, create_engine, event, func, insert, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.baselines import BUSY_TIMEOUT_MS, PORTFOLIO

POOL_SIZE = 40
"""As many as FastAPI runs threads; the pool of five that SQLAlchemy begins with would only make it slower."""
UNITS_PER_USD = 10**8
OPEN_UNITS = 500 * UNITS_PER_USD
CAP_UNITS = 10**10 * UNITS_PER_USD
LIVE = ("held", "open")


class Base(DeclarativeBase):
    """The tables."""


class Cap(Base):
    """What may be spent."""

    __tablename__ = "caps"

    portfolio: Mapped[str] = mapped_column(String, primary_key=True)
    units: Mapped[int] = mapped_column(BigInteger)


class Position(Base):
    """Money spent, or held for spending."""

    __tablename__ = "positions"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String, unique=True)
    portfolio: Mapped[str] = mapped_column(ForeignKey("caps.portfolio"))
    state: Mapped[str] = mapped_column(String)
    units: Mapped[int] = mapped_column(BigInteger)

    __table_args__ = (
        Index(
            "positions_live",
            "portfolio",
            "units",
            postgresql_where=text("state in ('held', 'open')"),
            sqlite_where=text("state in ('held', 'open')"),
        ),
    )


class ReserveRequest(BaseModel):
    """The body of a reserve."""

    key: str
    notional_usd: Decimal


class Reservation(BaseModel):
    """The answer to a reserve."""

    id: int


def open_engine(url: str) -> Engine:
    """An engine on which a check and the write after it are one transaction, on both databases."""
    if not url.startswith("sqlite"):
        return create_engine(url, pool_size=POOL_SIZE, max_overflow=0)
    engine = create_engine(
        url, pool_size=POOL_SIZE, max_overflow=0, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000}
    )  # fmt: skip

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")

    @event.listens_for(engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def prepare(url: str, open_positions: int) -> None:
    """Make the tables, and the positions that are open from the beginning."""
    engine = open_engine(url)
    Base.metadata.create_all(engine)
    rows = [
        {"key": f"filled/{n}", "portfolio": PORTFOLIO, "state": "open", "units": OPEN_UNITS}
        for n in range(open_positions)
    ]
    with Session(engine) as session, session.begin():
        session.add(Cap(portfolio=PORTFOLIO, units=CAP_UNITS))
        session.flush()
        session.execute(insert(Position), rows)
    engine.dispose()


def left(url: str) -> tuple[int, int]:
    """How many positions are open, and how many still held."""
    engine = open_engine(url)
    with Session(engine) as session:
        found = dict(session.execute(select(Position.state, func.count()).group_by(Position.state)).tuples().all())
    engine.dispose()
    return found.get("open", 0), found.get("held", 0)


def create_app(engine: Engine) -> FastAPI:
    """The service."""
    app = FastAPI()

    def cap_locked(session: Session) -> int:
        return session.scalars(select(Cap.units).where(Cap.portfolio == PORTFOLIO).with_for_update()).one()

    @app.post("/reservations", status_code=201)
    def reserve(asked: ReserveRequest) -> Reservation:
        units = int(asked.notional_usd * UNITS_PER_USD)
        live = select(func.coalesce(func.sum(Position.units), 0)).where(
            Position.portfolio == PORTFOLIO, Position.state.in_(LIVE)
        )
        with Session(engine) as session, session.begin():
            cap_units = cap_locked(session)
            if int(session.scalars(live).one()) + units > cap_units:
                raise HTTPException(409, "cap exceeded")
            position = Position(key=asked.key, portfolio=PORTFOLIO, state="held", units=units)
            session.add(position)
            session.flush()
            number = position.id
        return Reservation(id=number)

    @app.post("/reservations/{number}/release")
    def release(number: int) -> Reservation:
        with Session(engine) as session, session.begin():
            cap_locked(session)
            position = session.get_one(Position, number)
            if position.state != "held":
                raise HTTPException(409, f"already {position.state}")
            position.state = "released"
        return Reservation(id=number)

    return app


def main() -> None:
    """Serve on a free port of the loopback, and print its address."""
    app = create_app(open_engine(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        print(f"hand-written service at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
