"""Connections to PostgreSQL on which no wait is endless, and no answer comes from rows that a failover could forget.

A server that freezes, or a network that swallows packets, sends nothing: without a bound the driver waits for ever. And
a row can be visible before the synchronous standby has it: after a crash of the primary, or when somebody cancels the
wait for the standby. Such a row must not be answered from.
"""

from contextlib import suppress
from time import monotonic
from typing import Any

import psycopg
from psycopg import errors as pg
from sqlalchemy import Engine, event
from sqlalchemy.exc import DBAPIError, DisconnectionError

from ledger_sizer.model.errors import InvalidRequest

_CANCEL_SECONDS = 1
_POLL_SECONDS = 0.1
_PING_SECONDS = 2
_POOLER_LOOKS = 3
_SILENT_SECONDS = 60
_CANCELLED_WAIT = "SyncRepWaitForLSN"
"""The server's function that warns when the wait for a standby was cancelled. Its text depends on the language."""

CONFIRM = """
SELECT CASE WHEN current_setting('synchronous_standby_names') <> '' AND NOT pg_is_in_recovery()
    THEN pg_logical_emit_message(true, 'ledger_sizer', '') END
"""
"""Makes the COMMIT that follows wait for the synchronous standbys, as if the transaction had written all that it read.

The message is a few bytes of write-ahead log, which every reader of the log skips. Its commit is later in the log than
every row that this transaction can see, and standbys confirm the log in order. Without such standbys it does nothing.
"""


class BoundedConnection(psycopg.Connection[Any]):
    """A connection that is given up when the server does not answer in time.

    timeout_seconds: longest wait for one answer; None waits for ever.
    """

    timeout_seconds: float | None = None
    _unconfirmed = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_notice_handler(self._on_notice)

    def wait(self, gen: Any, interval: float = _POLL_SECONDS, timeout: float | None = None) -> Any:
        """Wait for the server. Raises `psycopg.OperationalError` after the timeout, and after an unconfirmed commit."""
        try:
            answer = super().wait(gen, interval, self.timeout_seconds if timeout is None else timeout)
        except pg._WaitTimeout:
            if timeout is not None:
                raise
            _silent_at[self.info.host, str(self.info.port)] = monotonic()
            self._give_up()
            raise psycopg.OperationalError(
                f"no answer from the database server within {self.timeout_seconds:g} s; the connection was given up"
            ) from None
        if self._unconfirmed:
            self._give_up()
            raise psycopg.OperationalError(
                "the wait for the synchronous standby was cancelled; what was committed is not known to be safe"
            )
        return answer

    def ping(self) -> None:
        """Try a connection that nobody uses now. Raises `psycopg.OperationalError` if the server does not answer."""
        timeout, self.timeout_seconds = self.timeout_seconds, _PING_SECONDS
        try:
            self.autocommit = True
            self.execute("SELECT 1")
            self.autocommit = False
        finally:
            self.timeout_seconds = timeout

    def _on_notice(self, notice: pg.Diagnostic) -> None:
        if notice.source_function == _CANCELLED_WAIT:
            self._unconfirmed = True

    def _give_up(self) -> None:
        """Close at once. A server that still works is told, so that no backend waits on for nobody."""
        with suppress(psycopg.Error):
            self.cancel_safe(timeout=_CANCEL_SECONDS)
        self.pgconn.finish()


def bound_connections(engine: Engine, timeout_seconds: float | None, *, ping: bool) -> None:
    """Let the engine open connections of this kind. ping: whether a pooled one is tried before it is used again."""

    @event.listens_for(engine, "do_connect")
    def _connect(_dialect: Any, _record: Any, args: Any, parameters: Any) -> BoundedConnection:
        connection = BoundedConnection.connect(*args, **_likely_host_first(parameters))
        connection.timeout_seconds = timeout_seconds
        if connection.execute("SHOW synchronous_commit").fetchone() == ("off",):
            # An acknowledged commit must be durable, whatever the server's default. Stronger settings are kept.
            connection.execute("SET synchronous_commit = on")
        connection.commit()
        _last_host[parameters.get("host")] = (connection.info.host, str(connection.info.port))
        return connection

    if ping:

        @event.listens_for(engine, "checkout")
        def _ping(driver: Any, _record: Any, _proxy: Any) -> None:
            try:
                driver.ping()
            except psycopg.Error as error:
                raise DisconnectionError from error  # the pool opens a new one, and tries every other before its use


_last_host: dict[str | None, tuple[str, str]] = {}
"""By the list of hosts in a URL: the host and port that accepted writes last. Any thread may set it at any time."""
_silent_at: dict[tuple[str, str], float] = {}
"""By host and port: the monotonic time at which it last did not answer."""


def _likely_host_first(parameters: dict[str, Any]) -> dict[str, Any]:
    """Put the host that worked last first, and those that went silent lately last.

    A frozen host still accepts connections, so that each attempt costs the whole connect time-out.
    """
    hosts, ports = str(parameters.get("host", "")).split(","), str(parameters.get("port", "")).split(",")
    if len(hosts) < 2 or len(ports) != len(hosts):
        return parameters
    last, silent_since = _last_host.get(parameters.get("host")), monotonic() - _SILENT_SECONDS
    silent = {pair for pair, at in list(_silent_at.items()) if at > silent_since}
    pairs = sorted(zip(hosts, ports, strict=True), key=lambda pair: (pair in silent, pair != last))
    return {**parameters, "host": ",".join(host for host, _ in pairs), "port": ",".join(port for _, port in pairs)}


def require_own_session(engine: Engine) -> None:
    """Raise `InvalidRequest` behind a pooler that gives each transaction another session, as PgBouncer can.

    The ledger sets up its sessions and prepares statements in them. A pooler invents the process id that it gives its
    clients; in this mode a client's server process changes while another client is in a transaction.
    """
    ask = "SELECT pg_backend_pid()"
    with engine.connect() as first:
        process = first.exec_driver_sql(ask).scalar()
        driver = first.connection.driver_connection
        if not isinstance(driver, BoundedConnection) or process == driver.info.backend_pid:
            return
        for _ in range(_POOLER_LOOKS):
            process = first.exec_driver_sql(ask).scalar()
            first.rollback()
            try:
                with engine.connect() as second:
                    second.exec_driver_sql(ask)
                    if first.exec_driver_sql(ask).scalar() == process:
                        continue
            except DBAPIError:
                pass  # the pooler had no other session to give
            raise InvalidRequest(
                "database_url: the database is reached through a connection pooler in transaction mode, which takes a "
                "session away after each transaction; connect to the server itself, or use session mode "
                "(PgBouncer: pool_mode=session)",
                field="database_url",
            )
