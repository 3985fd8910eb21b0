"""Gives scopes a guarantee and a largest position, and binds API keys to tags.

Revision ID: 0012
Revises: 0011
"""

import sqlalchemy as sa
from alembic import context, op
from alembic.util import CommandError

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

SETTINGS = ("cap_e8", "fresh_until_us")
NEW_SETTINGS = ("guarantee_e8", "max_position_e8")
SHARED = "guarantee_e8 IS NOT NULL OR scope LIKE '%=*'"


def upgrade() -> None:
    """Add the columns, and the index by which a batch finds the scopes that requests outside of them depend on."""
    # Plain SQL, as in 0004: SQLite adds and drops such columns without rebuilding the table.
    op.execute(
        "ALTER TABLE scopes ADD COLUMN guarantee_e8 BIGINT "
        "CONSTRAINT ck_scopes_guarantee CHECK (guarantee_e8 IS NULL OR guarantee_e8 >= 0)"
    )
    op.execute(
        "ALTER TABLE scopes ADD COLUMN max_position_e8 BIGINT "
        "CONSTRAINT ck_scopes_max_position CHECK (max_position_e8 IS NULL OR max_position_e8 > 0)"
    )
    op.execute(f"CREATE INDEX ix_scopes_shared ON scopes (portfolio_id) WHERE {SHARED}")
    op.execute("ALTER TABLE api_keys ADD COLUMN tags TEXT")
    _check_types((*SETTINGS, *NEW_SETTINGS))


def downgrade() -> None:
    """Remove them. Refused where they are in use: the older version would ignore them.

    Down to base everything is removed, so there it is not refused.
    """
    if not op.get_context().as_sql and context.get_revision_argument() is not None:
        _require_unused()
    _check_types(SETTINGS)
    op.execute("ALTER TABLE api_keys DROP COLUMN tags")
    op.execute("DROP INDEX ix_scopes_shared")
    op.execute("ALTER TABLE scopes DROP COLUMN max_position_e8")
    op.execute("ALTER TABLE scopes DROP COLUMN guarantee_e8")


def _check_types(settings: tuple[str, ...]) -> None:
    """Make SQLite refuse anything but whole numbers in these settings, as migration 0008 does."""
    if op.get_context().dialect.name != "sqlite":
        return
    for name, when, numbers in (
        ("scopes_types", "INSERT", (*settings, "held_e8", "open_e8", "overage_e8")),
        ("scopes_types_kept", f"UPDATE OF {', '.join(settings)}, scope", settings),
    ):
        wrong = " OR ".join(f"typeof(NEW.{column}) NOT IN ('integer', 'null')" for column in numbers)
        op.execute(f"DROP TRIGGER {name}")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {when} ON scopes "
            f"WHEN {wrong} OR typeof(NEW.scope) NOT IN ('text', 'null') "
            "BEGIN SELECT RAISE(ABORT, 'refused: a value of scopes is not of its column''s type'); END"
        )


def _require_unused() -> None:
    bind = op.get_bind()
    used = "guarantee_e8 IS NOT NULL OR max_position_e8 IS NOT NULL OR (scope LIKE '%=*' AND cap_e8 IS NOT NULL)"
    scopes = bind.execute(sa.text(f"SELECT count(*) FROM scopes WHERE {used}")).scalar()
    if scopes:
        raise CommandError(
            f"{scopes} scopes have a guarantee, a largest position or a default cap, which only version 0012 and later "
            "enforce; remove them with set_cap, or go on with the present version"
        )
    keys = bind.execute(sa.text("SELECT count(*) FROM api_keys WHERE tags IS NOT NULL AND revoked_us IS NULL")).scalar()
    if keys:
        raise CommandError(
            f"{keys} API keys are bound to tags, which only version 0012 and later enforce; revoke them, or go on "
            "with the present version"
        )
