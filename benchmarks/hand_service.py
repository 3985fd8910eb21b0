"""Serves reserve and release as a user would write it by hand: FastAPI, SQLAlchemy, `FOR UPDATE`, `SUM`.

    python -m benchmarks.hand_service DATABASE_URL

Lock the cap, sum the live positions, insert, commit; release under the same lock. Plain `def` endpoints in FastAPI's
thread pool, with a pooled session each. The endpoint opens the session itself, because with a session dependency 64
clients deadlock on the thread that would commit. Its cap holds (SQLite uses `BEGIN IMMEDIATE`). It has no idempotency
keys, expiry, scopes, history or access control.
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
"""As many connections as FastAPI has threads; SQLAlchemy's default of 5 would only make it slower."""
UNITS_PER_USD = 10**8
OPEN_UNITS = 500 * UNITS_PER_USD
CAP_UNITS = 10**10 * UNITS_PER_USD
LIVE = ("held", "open")


class Base(DeclarativeBase):
    """The tables."""


class Cap(Base):
    """The cap of a portfolio, 1e-8 USD."""

    __tablename__ = "caps"

    portfolio: Mapped[str] = mapped_column(String, primary_key=True)
    units: Mapped[int] = mapped_column(BigInteger)


class Position(Base):
    """A held, open or released position. units: 1e-8 USD."""

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
    """Open an engine on which a check and the write after it are one transaction, on both databases."""
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
    """Create the tables, the cap and the open positions."""
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


def position_counts(url: str) -> tuple[int, int]:
    """Return the number of (open, held) positions."""
    engine = open_engine(url)
    with Session(engine) as session:
        found = dict(session.execute(select(Position.state, func.count()).group_by(Position.state)).tuples().all())
    engine.dispose()
    return found.get("open", 0), found.get("held", 0)


def create_app(engine: Engine) -> FastAPI:
    """Create the FastAPI application."""
    app = FastAPI()

    def lock_cap(session: Session) -> int:
        return session.scalars(select(Cap.units).where(Cap.portfolio == PORTFOLIO).with_for_update()).one()

    @app.post("/reservations", status_code=201)
    def reserve(request: ReserveRequest) -> Reservation:
        units = int(request.notional_usd * UNITS_PER_USD)
        live = select(func.coalesce(func.sum(Position.units), 0)).where(
            Position.portfolio == PORTFOLIO, Position.state.in_(LIVE)
        )
        with Session(engine) as session, session.begin():
            cap_units = lock_cap(session)
            if int(session.scalars(live).one()) + units > cap_units:
                raise HTTPException(409, "cap exceeded")
            position = Position(key=request.key, portfolio=PORTFOLIO, state="held", units=units)
            session.add(position)
            session.flush()
            number = position.id
        return Reservation(id=number)

    @app.post("/reservations/{number}/release")
    def release(number: int) -> Reservation:
        with Session(engine) as session, session.begin():
            lock_cap(session)
            position = session.get_one(Position, number)
            if position.state != "held":
                raise HTTPException(409, f"already {position.state}")
            position.state = "released"
        return Reservation(id=number)

    return app


def main() -> None:
    """Serve on a free port of 127.0.0.1, and print the address."""
    app = create_app(open_engine(sys.argv[1]))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listening:
        print(f"hand-written service at http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
