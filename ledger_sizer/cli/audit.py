"""The commands of the audit: verify the chain, and move closed history into archive files."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, DatabaseUrl, Json
from ledger_sizer.cli.output import ALWAYS, Column
from ledger_sizer.model.errors import LedgerError

if TYPE_CHECKING:
    from ledger_sizer import VerifyReport
    from ledger_sizer.verify.chain import Heads

VERIFY_HELP = help_epilog(
    "verify",
    "verify --portfolio main --json",
    "verify --export-head head.json",
    "verify --since-head head.json",
    exits={1: "something is wrong, or it could not be read", 3: ""},
)


def verify(
    portfolio: AnyPortfolio = None,
    since_head: Annotated[
        str | None,
        typer.Option("--since-head", metavar="FILE", help="Begin at the trusted heads of this file, which must stand."),
    ] = None,
    export_head: Annotated[
        str | None,
        typer.Option("--export-head", metavar="FILE", help="When all is well, write the heads here, to be kept apart."),
    ] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Check the audit chain and recompute every counter.

    Reads every decision from the first and every position, in one snapshot, and names the first row that is not what
    the ledger wrote. Repairs nothing. Heads kept where nobody of the database can write make a rewrite visible.
    """
    from ledger_sizer.cli.ledger_session import ledger_at

    bar = output.progress_bar("verifying", unit="decisions", as_json=as_json)
    with ledger_at(database_url) as ledger, bar as update:
        progress = None if update is None else partial(update, "verifying")
        report = ledger.verify(portfolio, progress, since=_read_trusted_heads(since_head, portfolio))
    if report.ok and export_head is not None:
        from ledger_sizer.wire.responses import heads_to_json

        output.write_file([json.dumps(heads_to_json(report.heads), indent=2).encode() + b"\n"], export_head)
    show_report(report, as_json)
    return errors.DONE if report.ok else errors.FAILED


def _read_trusted_heads(path: str | None, portfolio: str | None) -> "Heads | None":
    """Read chain heads from a file: all, or those of `portfolio`. None without a file."""
    from ledger_sizer.wire.responses import heads_from_json

    if path is None:
        return None
    try:
        heads = heads_from_json(json.loads(Path(path).read_text()))
    except OSError as error:
        errors.bad_input(f"{path} cannot be read: {error.strerror}", "since_head")
    except (ValueError, LedgerError):
        errors.bad_input(f"{path} has no chain heads; write one with: verify --export-head FILE", "since_head")
    if portfolio is not None and portfolio not in heads:
        errors.bad_input(f"{path} has no head of portfolio {portfolio!r}", "since_head")
    return heads if portfolio is None else {portfolio: heads[portfolio]}


def show_report(report: "VerifyReport", as_json: bool) -> None:
    """Show what a verification read and found."""
    if as_json:
        from ledger_sizer.cli.json_forms import REPORT

        output.write_json(REPORT.to_json(report))
        return
    read = f"{output.count(report.decisions, 'decision')} and {output.count(report.positions, 'position')}"
    if report.ok:
        output.headline(f"ok: {read} checked", "ok")
    else:
        output.headline(f"NOT ok: {output.count(len(report.findings), 'finding')} in {read}", "denied")
        output.table(
            [Column("portfolio"), Column("seq"), Column("finding", priority=ALWAYS)],
            [(finding.portfolio, finding.seq, finding.what) for finding in report.findings],
            empty="",
        )
    output.table(
        [Column("portfolio"), Column("decisions"), Column("last hash", priority=ALWAYS)],
        [(name, seq, head) for name, (seq, head) in report.heads.items()],
        empty="no portfolios yet",
    )


ARCHIVE_HELP = help_epilog(
    "archive --before 2026-01-01T00:00:00Z",
    "archive --before 2026-01-01T00:00:00Z --dir ledger-archive --json",
    exits=NEVER_DENIED,
)


def archive(
    before: Annotated[str, typer.Option("--before", metavar="TIME", help="Decisions older than this move.")],
    folder: Annotated[
        str | None,
        typer.Option("--dir", metavar="FOLDER", help="Of the files; else LEDGER_ARCHIVE_DIR, else ledger-archive."),
    ] = None,
    portfolio: AnyPortfolio = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Move closed history out of the database, into compressed files.

    Oldest first: decisions, and the positions that had ended by then. History, explain and verify read them back from
    there. Keys of archived decisions are forgotten, so none of the last LEDGER_KEY_WINDOW_DAYS days may move.
    """
    from ledger_sizer.cli.ledger_session import ledger_at

    moment = options.timestamp(before, "before")
    assert moment is not None, "it is required"
    with ledger_at(database_url) as ledger:
        moved = ledger.archive(moment, folder, portfolio)
    files = [str(path) for path in moved.files]
    if as_json:
        output.write_json({"decisions": moved.decisions, "positions": moved.positions, "files": files})
    else:
        counted = f"{output.count(moved.decisions, 'decision')} and {output.count(moved.positions, 'position')}"
        output.write(f"archived: {counted}")
        for name in files:
            output.write(f"  {name}")
    return errors.DONE
