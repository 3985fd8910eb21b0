"""All caps as one file: export it, apply it."""

import json
import shlex
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from ledger_sizer.cli import errors, output
from ledger_sizer.cli.errors import Failure, bad_input
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AnyPortfolio, DatabaseUrl, IntentionKey, Json
from ledger_sizer.cli.output import Column

if TYPE_CHECKING:
    from ledger_sizer import Decision, Ledger, SetCap
    from ledger_sizer.model.caps import Change, Limits

EXPORT_HELP = help_epilog("caps export", "caps export caps.toml", "caps export -p main main.toml", exits=NEVER_DENIED)


def export_caps(
    file: Annotated[str | None, typer.Argument(metavar="FILE", help="Where the file goes; else here.")] = None,
    portfolio: AnyPortfolio = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Write the caps, guarantees and largest positions as one TOML file, which `caps apply` takes.

    All portfolios, or one. It holds what is set and nothing else, in the order of the names. With --json it is the same
    as JSON, which `caps apply` does not take.
    """
    from ledger_sizer.cli.ledger_session import ledger_at
    from ledger_sizer.model.caps import caps_of
    from ledger_sizer.wire.caps_file import caps_file_text, caps_form

    with ledger_at(database_url) as ledger:
        names = ledger.portfolios() if portfolio is None else [*ledger.heads(portfolio)]  # one nobody used has no caps
        caps = {name: caps_of(ledger.exposure(name)) for name in names}
    text = f"{json.dumps(caps_form(caps), indent=2)}\n" if as_json else caps_file_text(caps)
    output.write_file([text.encode()], file)
    return 0


APPLY_HELP = help_epilog(
    "caps apply caps.toml --dry-run", "caps apply caps.toml --note 'more for bot a'", "caps apply caps.toml --json",
    exits=NEVER_DENIED,
)  # fmt: skip


def apply_caps(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A file as `caps export` writes it.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Why; kept with each decision.")] = None,
    key: IntentionKey = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Bring every portfolio that a file names to exactly what it says.

    What the file lacks for such a portfolio is removed; portfolios that it does not name stay as they are. The changes
    of a portfolio take effect together or not at all. Where somebody else changed the same meanwhile, it is told: what
    was overwritten, and (with exit code 1) what is not as the file says.
    """
    from ledger_sizer.cli.ledger_session import ledger_at, new_key
    from ledger_sizer.wire.caps_file import read_caps_file

    try:
        data = Path(file).read_bytes()
    except OSError as error:
        bad_input(f"file {file!r} cannot be read: {error.strerror}; give the path of a file of caps", "file")
    origin = _origin(file, data, note)
    key = new_key() if key is None else key
    wanted = read_caps_file(data)
    with ledger_at(database_url, create=not dry_run) as ledger:
        plans = _plans(ledger, wanted, key, origin)
        done = [] if dry_run else _applied(ledger, plans, key)
        left = [] if dry_run else _left(ledger, [plan for plan in plans if plan.commands])
    overwritten = [change for plan, decisions in done for change in _overwritten(plan, decisions)]
    decisions = [decision for _, answers in done for decision in answers]
    if as_json:
        output.write_json(
            {
                "file": file, "sha256": sha256(data).hexdigest(), "dry_run": dry_run, "key": key,
                "changes": [form for plan in plans for form in _forms(plan)],
                "decisions": [
                    {"portfolio": one.portfolio, "seq": one.seq, "scope": one.binding, "replayed": one.replayed}
                    for one in decisions
                ],
                "overwritten": overwritten, "left": left,
            }
        )  # fmt: skip
    else:
        _show(plans, dry_run=dry_run, key=key if decisions else None)
    return _tell_of_others(overwritten, left, replayed=any(one.replayed for one in decisions))


class _Plan(NamedTuple):
    """What changes of one portfolio."""

    portfolio: str
    after: "dict[str, Limits]"
    changes: "list[Change]"
    commands: "list[SetCap]"


def _origin(file: str, data: bytes, note: str | None) -> str:
    """Return the note of each decision: the caller's, and which file it was."""
    name = Path(file).name
    which = f"{name if name.isprintable() else ascii(name)} sha256:{sha256(data).hexdigest()}"
    return which if note is None else f"{note} ({which})"


def _plans(ledger: "Ledger", wanted: "dict[str, dict[str, Limits]]", key: str, note: str) -> list[_Plan]:
    """Read what is set now, and plan every portfolio before anything changes."""
    from ledger_sizer.model.caps import caps_of, changes_between, commands_between

    present = ledger.portfolios()
    plans = []
    for name, after in wanted.items():
        before = caps_of(ledger.exposure(name)) if name in present else {}
        commands = commands_between(name, before, after, key=key, note=note)
        plans.append(_Plan(name, after, changes_between(before, after), commands))
    return plans


def _applied(ledger: "Ledger", plans: list[_Plan], key: str) -> "list[tuple[_Plan, list[Decision]]]":
    """Run the commands, portfolio by portfolio. An error in the middle names the portfolios that are done."""
    from ledger_sizer.model.decisions import Decision
    from ledger_sizer.model.errors import LedgerError

    done: list[tuple[_Plan, list[Decision]]] = []
    for plan in plans:
        if not plan.commands:
            continue
        try:
            answers = ledger.submit(plan.commands, atomic=True)
        except LedgerError as error:
            names = ", ".join(one.portfolio for one, _ in done) or "none"
            again = f"run the same command with --key {shlex.quote(key)}" if error.retryable else "apply the file again"
            hint = f"in portfolio {plan.portfolio}, of which nothing changed (done before it: {names}); {again}"
            raise Failure.from_error(error, hint=hint, key=key) from error
        done.append((plan, [answer for answer in answers if isinstance(answer, Decision)]))
    return done


def _overwritten(plan: _Plan, decisions: "list[Decision]") -> list[dict[str, Any]]:
    """Return the settings that were no longer as they were read when the file's took their place.

    Each decision records what it found.
    """
    from ledger_sizer.model.commands import SETTINGS
    from ledger_sizer.model.units import usd
    from ledger_sizer.rules.trace import read_scope

    found = []
    for decision in decisions:
        if decision.replayed or decision.seq == 1:  # which began the portfolio, with the settings' cap
            continue
        _, before, *_ = read_scope(json.loads(decision.trace)["scopes"][0])
        for change in plan.changes:
            if change.scope == decision.binding:
                then_e8 = getattr(before, SETTINGS[change.setting])
                then = None if then_e8 is None else usd(then_e8)
                if then != change.before:
                    found.append(_form(plan.portfolio, change._replace(before=then)))
    return found


def _left(ledger: "Ledger", plans: list[_Plan]) -> list[dict[str, Any]]:
    """Read again, and return what is not as the file says."""
    from ledger_sizer.model.caps import caps_of, changes_between

    return [
        _form(plan.portfolio, change)
        for plan in plans
        for change in changes_between(caps_of(ledger.exposure(plan.portfolio)), plan.after)
    ]


def _forms(plan: _Plan) -> list[dict[str, Any]]:
    return [_form(plan.portfolio, change) for change in plan.changes]


def _form(portfolio: str, change: "Change") -> dict[str, Any]:
    from ledger_sizer.model.units import decimal_text

    before, after = [None if value is None else decimal_text(value) for value in (change.before, change.after)]
    return {"portfolio": portfolio, "scope": change.scope, "setting": change.setting, "before": before, "after": after}


def _show(plans: list[_Plan], *, dry_run: bool, key: str | None) -> None:
    rows = [(plan.portfolio, *change) for plan in plans for change in plan.changes]
    if not rows:
        output.write(f"nothing to change: {'all is as the file says' if plans else 'the file names no portfolio'}")
        return
    output.table(
        [
            Column("portfolio"), Column("scope"), Column("setting"), Column("before USD", usd=True),
            Column("after USD", usd=True),
        ],
        rows, empty="",
    )  # fmt: skip
    output.write(f"{output.count(len(rows), 'change')}{': a dry run, nothing is changed' if dry_run else ' applied'}")
    if key is not None:
        output.details([("key", key)])


def _tell_of_others(overwritten: list[dict[str, Any]], left: list[dict[str, Any]], *, replayed: bool) -> int:
    """Tell what somebody else changed meanwhile. Return the exit code."""
    for one in overwritten:
        output.note(
            f"overwritten: {one['setting']} of {one['scope']} in {one['portfolio']} was {one['before'] or 'not set'} "
            f"by then; now {one['after'] or 'not set'}"
        )
    if not left:
        return errors.DONE
    first = left[0]
    more = f", and {output.count(len(left) - 1, 'more difference')}" if len(left) > 1 else ""
    why = "the key was used before, give a new --key" if replayed else "somebody else changed it, apply the file again"
    raise Failure(
        "changed_meanwhile",
        f"{first['setting']} of {first['scope']} in {first['portfolio']} is {first['before'] or 'not set'}, by the "
        f"file {first['after'] or 'not set'}{more}",
        hint=why,
    )
