"""Builds the statements of the PostgreSQL store from the models' columns.

The rows of each table are sent as one text parameter: fields joined as in the audit chain, rows joined by 0x1E. The
server splits and casts them, which costs the client far less than binding each field.
"""

from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import FromClause
from sqlalchemy.types import Text

from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.rules.state import CLOCK_STEP_US_MAX
from ledger_sizer.storage.tables import (
    DESK_ID,
    NO_DESK,
    OF_A_CALLER,
    PENDING,
    SHARED,
    DecisionRow,
    PortfolioRow,
    PositionRow,
    ScopeRow,
)
from ledger_sizer.storage.write_store import (
    COUNTERS,
    DECISION_COLUMNS,
    PORTFOLIO_COLUMNS,
    POSITION_COLUMNS,
    SCOPE_CHANGE,
    SCOPE_COLUMNS,
)

ROW_SEPARATOR = "\x1e"


def _rows(columns: Sequence[tuple[str, str]], parameter: str) -> str:
    """Return a FROM item that turns one text parameter into typed rows."""
    casts = ", ".join(f"f[{place}]{cast} AS {name}" for place, (name, cast) in enumerate(columns, 1))
    # OFFSET 0 keeps the planner from splitting each line anew for every field.
    return (
        f"(SELECT {casts} FROM (SELECT string_to_array(line, E'\\x1f', E'\\x1d') AS f "
        f"FROM string_to_table(%({parameter})s, E'\\x1e') AS line OFFSET 0) AS split)"
    )


def _typed(table: FromClause, columns: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, "" if isinstance(table.columns[name].type, Text) else "::bigint") for name in columns]


def _array(alias: str, columns: Sequence[str]) -> str:
    return f"json_agg(json_build_array({', '.join(f'{alias}.{column}' for column in columns)}))"


SESSION = """
SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED;
SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
SET jit = off; SET plan_cache_mode = force_generic_plan;
"""
"""Every lookup is by key. These settings rule out other plans, which would suit only tables that are still small."""

IDS = "SELECT name, id FROM portfolios WHERE name = ANY(%s)"

_SCOPES = _typed(ScopeRow.__table__, SCOPE_CHANGE)
NEXT_IDS = "SELECT nextval(pg_get_serial_sequence('portfolios', 'id')) FROM generate_series(1, %s)"
"""Ids of portfolios that begin. An id whose portfolio is not written in the end is never used."""

BEGUN = frozenset({"pk_portfolios", "uq_portfolios_name"})
"""Constraints that a write breaks where another process began the same portfolio meanwhile."""

LEASE = (
    "SELECT 1 FROM leases WHERE name = %s AND owner = %s AND epoch = %s "
    "AND until_us > (extract(epoch FROM clock_timestamp()) * 1000000)::bigint FOR UPDATE"
)

LOCK = "SELECT id, name, last_seq, last_hash, last_us FROM portfolios WHERE id = ANY(%s) ORDER BY id FOR UPDATE"

DESK_LOCK = "SELECT pg_advisory_xact_lock(1818584164)"
"""Waits until every write that depends on the desk's status has ended, and makes the next ones wait.

Those take the same lock, shared, in `ledger_desk_status()` (see migration 0010), when they hold the rows of their
portfolios. So a batch about the desk takes it after its rows too, or each would wait for what the other holds.
"""

_TAGGED = """SELECT q.* FROM positions q WHERE q.portfolio_id = %(id)s AND {live} AND NOT EXISTS (
    SELECT 1 FROM json_array_elements(%(tags)s) AS tag WHERE strpos(q.tags, tag ->> 0) = 0
        AND (strpos(q.tags, tag ->> 1) = 0 OR strpos(q.tags, tag ->> 2) = 0))"""
_LIVE = ("q.state = 'open'", f"{PENDING} AND q.state = 'held'")
BY_TAGS = (
    f"SELECT {_array('q', POSITION_COLUMNS)} FROM ({' UNION ALL '.join(_TAGGED.format(live=one) for one in _LIVE)}) q"
)
"""Live positions that may have all the tags of a `tag_filter`."""

GRANTED_LATELY = f"""SELECT DISTINCT position FROM decisions WHERE portfolio_id = %(id)s AND seq > COALESCE((
    SELECT seq FROM decisions WHERE portfolio_id = %(id)s AND decided_us <= %(as_of_us)s ORDER BY seq DESC LIMIT 1
), 0) AND command IN ('reserve', 'extend') AND outcome = 'granted' AND {OF_A_CALLER}
    AND position = ANY(%(numbers)s::bigint[])"""

_NAMED_SCOPES = (
    "json_to_recordset(%(scopes)s) AS n(p bigint, k text) JOIN scopes s ON s.portfolio_id = n.p AND s.scope = n.k"
)
LOAD_SCOPES = f"SELECT {_array('s', SCOPE_COLUMNS)} FROM {_NAMED_SCOPES}"
_LOAD_WITH_SHARED = (
    f"SELECT {_array('s', SCOPE_COLUMNS)} FROM (SELECT s.* FROM {_NAMED_SCOPES} UNION ALL "
    f"SELECT * FROM scopes WHERE portfolio_id = ANY(%(ids)s::bigint[]) AND ({SHARED.replace('%', '%%')})) AS s"
)
"""The scopes of a batch, and those that requests outside of them depend on, perhaps twice."""

LOAD = f"""
WITH due AS MATERIALIZED (
    SELECT id, now_us, CASE WHEN last_us > now_us + {CLOCK_STEP_US_MAX} THEN now_us ELSE GREATEST(last_us, now_us) END
        AS until_us FROM portfolios, (
        SELECT COALESCE(%(now)s::bigint, (extract(epoch FROM clock_timestamp()) * 1000000)::bigint) AS now_us OFFSET 0
    ) AS clock WHERE id = ANY(%(ids)s::bigint[])
), overdue AS MATERIALIZED (
    SELECT q.* FROM due CROSS JOIN LATERAL (
        SELECT * FROM positions WHERE portfolio_id = due.id AND expires_us <= due.until_us AND {PENDING}
        ORDER BY expires_us, number LIMIT %(expiries_max)s
    ) AS q
), known AS MATERIALIZED (
    SELECT d.* FROM json_to_recordset(%(keys)s) AS n(p bigint, k text)
        JOIN decisions d ON d.portfolio_id = n.p AND d.key = n.k
), found AS MATERIALIZED (
    SELECT q.* FROM json_to_recordset(%(numbers)s) AS n(p bigint, k bigint)
        JOIN positions q ON q.portfolio_id = n.p AND q.number = n.k
    UNION ALL SELECT q.* FROM json_to_recordset(%(origins)s) AS n(p bigint, k bigint)
        JOIN positions q ON q.portfolio_id = n.p AND q.origin = n.k AND q.origin IS NOT NULL
    UNION ALL SELECT q.* FROM known JOIN due ON due.id = known.portfolio_id CROSS JOIN LATERAL (
        SELECT * FROM positions
        WHERE portfolio_id = due.id AND number = known.position AND expires_us <= due.until_us AND {PENDING}
    ) AS q
    UNION ALL SELECT * FROM overdue
)
SELECT COALESCE((SELECT max(now_us) FROM due), %(now)s::bigint,
        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint),
    COALESCE((SELECT status FROM scopes WHERE portfolio_id = {DESK_ID} AND scope = '{PORTFOLIO_SCOPE}'), '{NO_DESK}'),
    (SELECT {_array("found", POSITION_COLUMNS)} FROM found),
    (SELECT {_array("known", DECISION_COLUMNS)} FROM known),
    ({_LOAD_WITH_SHARED}),
    (SELECT json_agg(json_build_array(due.id, (
        SELECT expires_us FROM positions WHERE portfolio_id = due.id AND {PENDING} ORDER BY expires_us
        LIMIT 1 OFFSET (SELECT count(*) FROM overdue WHERE overdue.portfolio_id = due.id)
    ))) FROM due)
"""

_HEADS = [
    ("id", "::bigint"), ("last_seq", "::bigint"), ("last_hash", ""), ("last_us", "::bigint"), ("previous_hash", "")
]  # fmt: skip
_COUNTERS = len(COUNTERS)
_CHANGED_SCOPES = [*_SCOPES[:_COUNTERS], ("all_columns", ""), *_SCOPES[_COUNTERS:]]
"""A line that changes only counters ends with `all_columns` 0. The settings are then read as NULL."""
_SET_SETTINGS = ", ".join(
    f"{name} = CASE WHEN r.all_columns = '1' THEN r.{name} ELSE s.{name} END" for name in SCOPE_CHANGE[_COUNTERS:]
)
_POSITIONS = _typed(PositionRow.__table__, POSITION_COLUMNS)
_SET_POSITION = ", ".join(f"{name} = r.{name}" for name in POSITION_COLUMNS if name not in ("portfolio_id", "number"))

_PARTS = {
    "new_portfolios": f"""new_portfolios AS (
    INSERT INTO portfolios ({", ".join(PORTFOLIO_COLUMNS)})
    SELECT * FROM {_rows(_typed(PortfolioRow.__table__, PORTFOLIO_COLUMNS), "new_portfolios")} AS r
)""",
    "decisions": f"""new_decisions AS (
    INSERT INTO decisions ({", ".join(DECISION_COLUMNS)})
    SELECT * FROM {_rows(_typed(DecisionRow.__table__, DECISION_COLUMNS), "decisions")} AS r
)""",
    "new_positions": f"""new_positions AS (
    INSERT INTO positions ({", ".join(POSITION_COLUMNS)}) SELECT * FROM {_rows(_POSITIONS, "new_positions")} AS r
)""",
    "changed_positions": f"""changed_positions AS (
    UPDATE positions q SET {_SET_POSITION} FROM {_rows(_POSITIONS, "changed_positions")} AS r
    WHERE q.portfolio_id = r.portfolio_id AND q.number = r.number
)""",
    "new_scopes": f"""new_scopes AS (
    INSERT INTO scopes ({", ".join(SCOPE_CHANGE)}) SELECT * FROM {_rows(_SCOPES, "new_scopes")} AS r
)""",
    "changed_scopes": f"""changed_scopes AS (
    UPDATE scopes s SET held_e8 = s.held_e8 + r.held_e8, open_e8 = s.open_e8 + r.open_e8, overage_e8 = r.overage_e8,
        promised_e8 = r.promised_e8, {_SET_SETTINGS}
    FROM {_rows(_CHANGED_SCOPES, "changed_scopes")} AS r WHERE s.portfolio_id = r.portfolio_id AND s.scope = r.scope
)""",
}
PARTS = frozenset(_PARTS)
"""Names of the parts of a write. Each is also the name of the parameter with its rows."""


@lru_cache
def write_statement(parts: frozenset[str], *, ask_desk: bool) -> str:
    """Return one statement that writes all changes of a batch, with only the parts it needs: an unused part costs too.

    It is a compare-and-set: if a head is not the one the batch was decided against, or with `ask_desk` the desk's
    status is not `desk_status`, a division by zero undoes it all.
    """
    desk = f" AND COALESCE(ledger_desk_status(), '{NO_DESK}') = %(desk_status)s" if ask_desk else ""
    return f"""
WITH head AS (
    UPDATE portfolios p SET last_seq = r.last_seq, last_hash = r.last_hash, last_us = r.last_us
    FROM {_rows(_HEADS, "heads")} AS r WHERE p.id = r.id AND p.last_hash = r.previous_hash RETURNING p.id
), {", ".join(text for name, text in _PARTS.items() if name in parts)}
SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint, 1 / (count(*) = %(count)s{desk})::int FROM head
"""
