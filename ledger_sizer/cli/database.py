"""`ledger-sizer db`: the schema's version, the migrations that change it, backups and copies."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger_sizer.cli import output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.ledger_session import engine_at, load_settings
from ledger_sizer.cli.options import Create, DatabaseUrl, Json
from ledger_sizer.model.errors import InvalidRequest

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ledger_sizer.verify.chain import Heads

db = typer.Typer(rich_markup_mode=None)


DB_HELP = help_epilog("db check", "db upgrade --database-url sqlite:///ledger.db", exits=NEVER_DENIED)


@db.callback(epilog=DB_HELP)
def group() -> None:
    """Create the ledger's tables, and move them between versions.

    An embedded SQLite file migrates itself when it is opened; a server's database waits for `db upgrade`.
    """


def _migrate(engine: "Engine", move: Callable[[Any, str], object], revision: str) -> tuple[str | None, str | None]:
    """Run a migration. Returns the schema versions before and after it, None for no schema."""
    from alembic.util import CommandError

    from ledger_sizer.storage.database import SCHEMA_HEAD, require_head, schema_version

    before = schema_version(engine)
    if before is not None and before > SCHEMA_HEAD:
        require_head(engine)
    try:
        move(engine.url, revision)
    except CommandError as error:
        raise InvalidRequest(f"cannot migrate to {revision!r}: {error}", field="revision") from None
    return before, schema_version(engine)


def _show_version(engine: "Engine", as_json: bool, before: str | None, after: str | None) -> None:
    from ledger_sizer.storage.database import SCHEMA_HEAD, redacted_url

    where = redacted_url(engine.url)
    if as_json:
        head = {"current": after, "head": SCHEMA_HEAD, "is_current": after == SCHEMA_HEAD}
        output.write_json({"database": where, "previous": before, **head})
        return
    state = "has no ledger" if after is None else f"is at {after}"
    if before != after:
        state += f", was {'empty' if before is None else f'at {before}'}"
    newest = "" if after == SCHEMA_HEAD else f"; the newest is {SCHEMA_HEAD}"
    output.write(f"{where} {state}{newest}")


@db.command("upgrade", epilog=help_epilog("db upgrade", "db upgrade 0001", exits=NEVER_DENIED))
def upgrade(
    revision: Annotated[str, typer.Argument(metavar="REVISION", help="Where to; the newest when not given.")] = "head",
    create: Create = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Migrate the database up, creating everything in an empty one.

    Stop the writers first when several versions of this program are in use.
    """
    from functools import partial

    from ledger_sizer.storage.database import upgrade as migrate

    rule = "always" if create else load_settings().ledger.create
    with engine_at(database_url, create=True) as engine:
        before, after = _migrate(engine, partial(migrate, create=rule), revision)
        _show_version(engine, as_json, before, after)
    return 0


@db.command(
    "downgrade",
    epilog=help_epilog("db downgrade -1", "db downgrade base --yes", exits=NEVER_DENIED),
    context_settings={"ignore_unknown_options": True},  # so that -1 is a revision, not an option
)
def downgrade(
    revision: Annotated[
        str, typer.Argument(metavar="REVISION", help="Where to: a version, -1 for one step back, base for nothing.")
    ] = "-1",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, on a terminal, before data is lost.")] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Migrate the database down, losing what the older version cannot hold.

    `base` removes the ledger with every position and decision in it. On a terminal it asks first.
    """
    import sys

    from ledger_sizer.storage.database import downgrade as migrate
    from ledger_sizer.storage.database import redacted_url

    with engine_at(database_url) as engine:
        if not yes and sys.stdin.isatty():
            typer.confirm(
                f"Downgrade {redacted_url(engine.url)} to {revision} and lose what it cannot hold?",
                abort=True,
                err=True,
            )
        before, after = _migrate(engine, migrate, revision)
        _show_version(engine, as_json, before, after)
    return 0


@db.command("current", epilog=help_epilog("db current --json", exits=NEVER_DENIED))
def current(as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Show which version the database is at."""
    from ledger_sizer.storage.database import schema_version

    with engine_at(database_url) as engine:
        version = schema_version(engine)
        _show_version(engine, as_json, version, version)
    return 0


@db.command(
    "check",
    epilog=help_epilog(
        "db check", exits={0: "the database is what this version needs", 1: "it is not, or is away", 3: ""}
    ),
)
def check(as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Check that the database is at the version this program needs.

    Names the command to run where it is not. Made for a deployment's start-up.
    """
    from ledger_sizer.storage.database import SCHEMA_HEAD, require_head

    with engine_at(database_url) as engine:
        require_head(engine)
        _show_version(engine, as_json, SCHEMA_HEAD, SCHEMA_HEAD)
    return 0


@db.command(
    "backup",
    epilog=help_epilog(
        "db backup ledger-backup.db", exits={1: "it could not be written, or is not what it should be", 3: ""}
    ),
)
def backup(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A new file.")],
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Back up a SQLite ledger while it is in use, and verify the backup.

    PostgreSQL brings pg_dump for this; docs/backup.md has the drill.
    """
    from pathlib import Path

    from ledger_sizer.history.backup import backup_sqlite as copy_pages

    with engine_at(database_url, read_only=True) as engine:
        copy_pages(engine, Path(file))
    return _verify_and_show(f"sqlite:///{file}", None, as_json)


@db.command(
    "copy",
    epilog=help_epilog(
        "db copy sqlite:///ledger.db sqlite:///copy.db",
        exits={1: "it could not be copied, or the copy is not what it should be", 3: ""},
    ),
)
def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="URL of the ledger.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="URL of an empty database, migrated as needed.")],
    restore: Annotated[
        bool, typer.Option("--restore-archives", help="Make rows of the archive files again; the copy has no archive.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Copy a ledger to another database, and verify that the copy has the same chain heads.

    Between SQLite and PostgreSQL in either direction. Stop the source's writers first: what they decide later stays
    behind. Archive files are not copied, only what the ledger knows of them, unless they are restored.
    """
    from ledger_sizer.config import AppSettings
    from ledger_sizer.history.archive_files import archive_files_from
    from ledger_sizer.history.backup import copy_ledger as copy_rows
    from ledger_sizer.storage.database import upgrade as migrate
    from ledger_sizer.verify.chain import heads_of

    with engine_at(source, read_only=True) as source_engine, engine_at(target, create=True) as target_engine:
        migrate(target_engine.url, create=load_settings().ledger.create)
        heads = heads_of(source_engine)
        copy_rows(
            source_engine, target_engine, restore=archive_files_from(AppSettings.of_program()) if restore else None
        )
    return _verify_and_show(target, heads, as_json)


def _verify_and_show(url: str, heads: "Heads | None", as_json: bool) -> int:
    """Verify a backup or copy, and show the report. With `heads`, its chain heads must equal them."""
    from ledger_sizer.cli import errors
    from ledger_sizer.cli.audit import show_report
    from ledger_sizer.cli.ledger_session import ledger_at

    with ledger_at(url) as ledger:  # which leaves no marker beside a backup
        report = ledger.verify()
    show_report(report, as_json)
    if heads is not None and dict(report.heads) != dict(heads):
        output.note("the source was written to meanwhile: the copy ends before it does; stop its writers and copy anew")
        return errors.FAILED
    return errors.DONE if report.ok else errors.FAILED
