"""The commands of the audit: verify the chain, and move closed history into archive files."""

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, DatabaseUrl, Json
from ledger_sizer.cli.output import ALWAYS, Column

if TYPE_CHECKING:
    from ledger_sizer import VerifyReport
    from ledger_sizer.verify.head_files import TrustedHeads

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
        typer.Option(
            "--since-head", metavar="FILE", help="Begin at the newest trusted heads of this file; all must stand."
        ),
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

    trusted = None if since_head is None else _read_trusted_heads(since_head, portfolio)
    since, kept = (None, None) if trusted is None else (trusted.newest, trusted.kept)
    bar = output.progress_bar("verifying", unit="decisions", as_json=as_json)
    with ledger_at(database_url) as ledger, bar as update:
        progress = None if update is None else partial(update, "verifying")
        report = ledger.verify(portfolio, progress, since=since, kept=kept)
    if report.ok and export_head is not None:
        from ledger_sizer.wire.responses import heads_to_json

        output.write_file([json.dumps(heads_to_json(report.heads), indent=2).encode() + b"\n"], export_head)
    show_report(report, as_json, trusted)
    return errors.DONE if report.ok else errors.FAILED


def _read_trusted_heads(path: str, portfolio: str | None) -> "TrustedHeads":
    """Read chain heads from a file: all, or those of `portfolio`."""
    from ledger_sizer.verify.head_files import read_heads

    try:
        found = read_heads(Path(path))
    except OSError as error:
        errors.bad_input(f"{path} cannot be read: {error.strerror}", "since_head")
    except ValueError:
        errors.bad_input(f"{path} has no chain heads; write one with: verify --export-head FILE", "since_head")
    if portfolio is None:
        return found
    if portfolio not in found.newest:
        errors.bad_input(f"{path} has no head of portfolio {portfolio!r}", "since_head")
    return found._replace(newest={portfolio: found.newest[portfolio]}, kept={portfolio: found.kept[portfolio]})


def show_report(report: "VerifyReport", as_json: bool, trusted: "TrustedHeads | None" = None) -> None:
    """Show what a verification read and found. trusted: the heads it began at."""
    if as_json:
        from ledger_sizer.wire.verification import REPORT

        output.write_json(REPORT.to_json(report) | ({} if trusted is None else {"trusted": _trusted_form(trusted)}))
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
    if trusted is not None:
        _show_trusted(trusted)
    output.table(
        [Column("portfolio"), Column("decisions"), Column("last hash", priority=ALWAYS)],
        [(name, seq, head) for name, (seq, head) in report.heads.items()],
        empty="no portfolios yet",
    )


def _trusted_form(trusted: "TrustedHeads") -> dict[str, Any]:
    heads = len(trusted.newest) + sum(map(len, trusted.kept.values()))
    exported_at = None if trusted.at is None else trusted.at.isoformat()
    return {"heads": heads, "exported_at": exported_at, "unreadable_lines": trusted.unreadable}


def _show_trusted(trusted: "TrustedHeads") -> None:
    """Say how many heads were checked, and since when nothing was exported."""
    form = _trusted_form(trusted)
    text = f"began at the newest of {output.count(form['heads'], 'trusted head')}"
    if trusted.at is not None:
        text += f", last exported at {form['exported_at']}: what was decided later and cut off again is not seen"
    output.write(text)
    if trusted.unreadable:
        output.write(f"left out: {output.count(trusted.unreadable, 'line')} that cannot be read, as a crash leaves")


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
