"""Parameters of a connection to PostgreSQL: which hosts it may have, and when a lost one is noticed."""

import re
from typing import Any

from sqlalchemy.engine import URL

from ledger_sizer.model.errors import InvalidRequest


def connect_parameters(url: URL, connect_seconds: int, timeout_seconds: float) -> dict[str, Any]:
    """Return the driver's parameters that let a lost connection be noticed. What the URL sets stays as it is."""
    wanted: dict[str, Any] = {
        "connect_timeout": connect_seconds,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
        "tcp_user_timeout": int(timeout_seconds * 1000),
        "application_name": "ledger-sizer",
    }
    hosts = url.query.get("host", "")
    if len(hosts.split(",") if isinstance(hosts, str) else hosts) > 1:
        wanted["target_session_attrs"] = "read-write"  # of several hosts the one that accepts writes
    return {name: value for name, value in wanted.items() if name not in url.query}


_HOSTS = re.compile(
    r"(?P<scheme>[^:/?]+://)(?:(?P<user>[^/?]*)@)?(?P<hosts>[^/?@]*,[^/?@]*)(?P<rest>/[^?]*)?(?:\?(?P<query>.*))?"
)
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::(\d*))?")


def with_host_list(value: str) -> str:
    """Convert a URL that names several hosts as libpq writes them (`//h1:5432,h2/name`) to SQLAlchemy's form.

    Raises `InvalidRequest` for a host or port that cannot be read. Other URLs stay as they are.
    """
    found = _HOSTS.fullmatch(value)
    if found is None:
        return value
    pairs = [_HOST.fullmatch(one) for one in found["hosts"].split(",")]
    if not all(pairs):
        raise InvalidRequest(
            "database_url: cannot read the list of hosts; write postgresql://user@host1:5432,host2:5432/name",
            field="database_url",
        )
    hosts = ",".join(pair[1].strip("[]") for pair in pairs if pair)
    ports = ",".join(pair[2] or "5432" for pair in pairs if pair)
    user = f"{found['user']}@" if found["user"] is not None else ""
    query = f"&{found['query']}" if found["query"] else ""
    return f"{found['scheme']}{user}{found['rest'] or '/'}?host={hosts}&port={ports}{query}"
