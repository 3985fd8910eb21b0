"""`ledger-sizer demo`: runs the service with eight bots, and sums up what happened."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.help_text import help_epilog
from ledger_sizer.cli.options import Json

if TYPE_CHECKING:
    from ledger_sizer.demo.drift_injection import InjectionResult
    from ledger_sizer.demo.run import Plan
    from ledger_sizer.demo.summary import ReconciliationSummary, Summary

DEMO_HELP = help_epilog(
    "demo --seconds 5",
    "demo --seconds 5 --seed 11 --json",
    exits={1: "failure, or a promise was broken: a cap breached, a ledger that does not verify", 3: ""},
)

SECONDS_MAX = 86_400


def demo(
    seconds: Annotated[str, typer.Option("--seconds", metavar="N", help="How long the bots trade, at least.")] = "60",
    forever: Annotated[bool, typer.Option("--forever", help="Keep it up until Ctrl-C.")] = False,
    seed: Annotated[str, typer.Option("--seed", metavar="N", help="Of what the bots do.")] = "7",
    as_json: Json = False,
) -> int:
    """Show the service at work: eight bots, each a process, compete for one cap.

    Starts the service on a ledger of its own in a temporary folder. The bots reserve, fill late, fill partly, crash
    without releasing, and send commands twice; now and then one is killed. A ninth trades at a paper venue (with the
    extra exchanges), where somebody meddles with the account and the reconciliation has to find it. When the time is
    over and there was something of each to see, everything is stopped, the ledger verified, its audit chain summed up.
    """
    from ledger_sizer.demo.run import Plan, demonstrate
    from ledger_sizer.model.extras import require_service

    require_service()
    plan = Plan(seconds=None if forever else _seconds(seconds), seed=options.whole_number(seed, "seed"))
    with _stop_event() as stop, _display(as_json=as_json) as show:
        _announce_start(plan, as_json=as_json)
        summary = demonstrate(plan, show, stop)
    if as_json:
        output.write_json(summary.document())
    else:
        _show_summary(summary)
    return errors.DONE if summary.ok else errors.FAILED


def _seconds(text: str) -> float:
    value = options.decimal(text, "seconds")
    if not 0 < value <= SECONDS_MAX:
        errors.bad_input(f"seconds must be above 0 and at most {SECONDS_MAX}, got {text!r}", "seconds")
    return float(value)


def _announce_start(plan: "Plan", *, as_json: bool) -> None:
    if not as_json:
        length = "until Ctrl-C" if plan.seconds is None else f"for {plan.seconds:g} s"
        _write_at_once(f"starting the service and eight bots, {length} ...")


def _write_at_once(text: str) -> None:
    """Write a line, and flush it, so that it is seen at once through a pipe too."""
    output.write(text)
    sys.stdout.flush()


@contextmanager
def _stop_event() -> Iterator[Event]:
    """Yield an event that Ctrl-C and SIGTERM set, so that the demonstration ends early but with its summary."""
    stop = Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _display(*, as_json: bool) -> Iterator[Any]:
    from ledger_sizer.demo import screen

    if as_json:
        yield lambda _: None
    elif output.on_terminal():
        from rich.console import Console

        with screen.live(Console(highlight=False, markup=False, emoji=False)) as show:
            yield show
    else:
        with screen.lines(_write_at_once) as show:
            yield show


def _show_summary(summary: "Summary") -> None:
    columns = [output.Column("command"), output.Column("outcome"), output.Column("reason"), output.Column("count")]
    rows = [[*kind, number] for kind, number in sorted(summary.outcomes.items(), key=str)]
    output.table(columns, rows, empty="no decisions")
    deaths = ", ".join(f"{number} {how}" for how, number in sorted(summary.deaths.items()))
    output.details(
        [
            ("cap", f"{output.figure(summary.cap, 2)} USD"),
            ("highest granted", f"{output.figure(summary.highest_granted, 2)} USD"),
            ("highest with late fills", f"{output.figure(summary.highest, 2)} USD"),
            ("holds that expired", summary.expiries),
            ("bots that died", deaths or "none"),
            ("answers replayed", summary.events.get("replayed", 0)),
            ("errors the bots met", summary.events.get("error", 0)),
        ]
    )
    if summary.reconciliation is not None:
        _show_reconciliation(summary.reconciliation)
    for breach in summary.breaches:
        output.note(f"cap breached: {breach}")
    for finding in summary.report.findings:
        output.note(f"verify: {finding.portfolio} #{finding.seq}: {finding.what}")
    if summary.deaths.get("failed"):
        output.note("a bot ended with an error of its own")
    if not summary.graceful:
        output.note("the service did not stop in order")
    verified = (
        f"{output.count(summary.report.decisions, 'decision')}, {output.count(summary.report.positions, 'position')}"
    )
    words = "no grant breached a cap, the ledger verifies" if summary.ok else "a promise was broken"
    output.headline(f"{words}: {verified}", "ok" if summary.ok else "denied")


def _show_reconciliation(found: "ReconciliationSummary") -> None:
    runs = ", ".join(f"{number} {outcome}" for outcome, number in sorted(found.runs.items()))
    output.details(
        [
            ("reconciliations", runs or "none"),
            ("markets that agreed", found.agreed),
            ("confirmed besides", found.others),
            *((one.kind, f"{one.what}: {_drift_result(one)}") for one in found.injected),
        ]
    )
    if not found.ok:
        output.note("the reconciliation did not find and clear everything that was done at the venue")


def _drift_result(injected: "InjectionResult") -> str:
    if injected.drift is None:
        return "NOT FOUND"
    return f"found as drift-{injected.drift}, {'cleared' if injected.cleared else 'NOT CLEARED'}"
