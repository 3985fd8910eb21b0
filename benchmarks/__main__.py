"""`python -m benchmarks throughput`, `curve`, `service`, `reconcile`, `audit` and `dashboard`."""

from __future__ import annotations

import signal
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import audit as audit_command
from benchmarks import curve as curve_command
from benchmarks import dashboard as dashboard_command
from benchmarks import reconcile as reconcile_command
from benchmarks import service as service_command
from benchmarks import throughput as throughput_command
from benchmarks.measure import BenchmarkError, Pace
from benchmarks.report import new_console
from benchmarks.servers import Engine

app = typer.Typer(add_completion=False)

WARMUP_SHARE = 0.2
SHORT_SECONDS = 0.4
SHORT_SIZES = (10, 1_000)
CURVE_CALLERS = 64
SHORT_SERVICE_CALLERS = (1, 64)
SHORT_SERVICE_BATCH_CALLERS = (4,)
SHORT_SERVICE_SECONDS = 1.0  # one pair of batch calls may take 0.1 s
SHORT_DECISIONS = 20_000


class EngineChoice(StrEnum):
    """The databases to run on."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    BOTH = "both"

    def engines(self) -> tuple[Engine, ...]:
        if self is EngineChoice.BOTH:
            return ("sqlite", "postgresql")
        return ("sqlite",) if self is EngineChoice.SQLITE else ("postgresql",)


EngineOption = Annotated[EngineChoice, typer.Option(help="Databases to run on.")]
SecondsOption = Annotated[float, typer.Option(min=0.1, help="Measured seconds per cell; a fifth more warms it up.")]
RoundsOption = Annotated[int, typer.Option(min=1, help="Times every cell is run; the median round is shown.")]
ShortOption = Annotated[bool, typer.Option("--short", help="Under a minute: shows that it runs, not how fast.")]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Write the figures to this file too.")]
FolderOption = Annotated[
    Path | None,
    typer.Option("--dir", exists=True, file_okay=False, help="Folder for the databases; must be on a disk."),
]


@app.callback(invoke_without_command=True)
def choose(context: typer.Context) -> None:
    """Measure ledger_sizer on real databases. Without a command: throughput, with its defaults."""
    if context.invoked_subcommand is None:
        throughput()


@app.command()
def throughput(
    *,
    engine: EngineOption = EngineChoice.BOTH,
    seconds: SecondsOption = 5.0,
    rounds: RoundsOption = 1,
    callers: Annotated[str, typer.Option(help="Numbers of concurrent callers, comma-separated.")] = "1,16,64",
    forms: Annotated[str, typer.Option(help="Forms to run, comma-separated.")] = ",".join(throughput_command.FORMS),
    short: ShortOption = False,
    json_file: JsonOption = None,
    folder: FolderOption = None,
) -> None:
    """Compare reserve+release pairs per second and their latencies: by hand, on a hot row, with ledger_sizer."""
    plan = throughput_command.Plan(
        engines=engine.engines(),
        callers=_positive_numbers(callers, "--callers"),
        forms=_known_forms(forms),
        pace=_pace(SHORT_SECONDS if short else seconds),
        rounds=1 if short else rounds,
        folder=folder,
    )
    throughput_command.run(plan, new_console(), json_file)


@app.command()
def curve(
    *,
    engine: EngineOption = EngineChoice.BOTH,
    seconds: SecondsOption = 5.0,
    rounds: RoundsOption = 3,
    sizes: Annotated[str, typer.Option(help="Open positions to load, comma-separated.")] = "10,1000,100000,1000000",
    short: ShortOption = False,
    json_file: JsonOption = None,
    folder: FolderOption = None,
) -> None:
    """Measure 64 callers beside 10 to 1,000,000 open positions and as many decisions."""
    plan = curve_command.Plan(
        engines=engine.engines(),
        sizes=SHORT_SIZES if short else tuple(sorted(_positive_numbers(sizes, "--sizes"))),
        callers=CURVE_CALLERS,
        pace=_pace(SHORT_SECONDS if short else seconds),
        rounds=1 if short else rounds,
        folder=folder,
    )
    curve_command.run(plan, new_console(), json_file)


@app.command()
def service(
    *,
    engine: EngineOption = EngineChoice.BOTH,
    seconds: SecondsOption = 5.0,
    rounds: RoundsOption = 1,
    callers: Annotated[str, typer.Option(help="Numbers of keep-alive clients, comma-separated.")] = "1,16,64",
    batch_callers: Annotated[str, typer.Option(help="Numbers of clients that send batch calls.")] = "4,64",
    short: ShortOption = False,
    json_file: JsonOption = None,
    folder: FolderOption = None,
) -> None:
    """Compare the HTTP service with one written by hand: throughput, latency, start and memory."""
    plan = service_command.Plan(
        engines=engine.engines(),
        callers=SHORT_SERVICE_CALLERS if short else _positive_numbers(callers, "--callers"),
        batch_callers=SHORT_SERVICE_BATCH_CALLERS if short else _positive_numbers(batch_callers, "--batch-callers"),
        pace=_pace(SHORT_SERVICE_SECONDS if short else seconds),
        rounds=1 if short else rounds,
        folder=folder,
    )
    service_command.run(plan, new_console(), json_file)


@app.command()
def audit(
    *,
    engine: EngineOption = EngineChoice.BOTH,
    decisions: Annotated[int, typer.Option(min=2_000, help="Length of the history.")] = 1_000_000,
    short: ShortOption = False,
    json_file: JsonOption = None,
    folder: FolderOption = None,
) -> None:
    """Measure looking back at a million decisions: pages, filters, exports, verification, archive."""
    plan = audit_command.Plan(engine.engines(), SHORT_DECISIONS if short else decisions, folder)
    audit_command.run(plan, new_console(), json_file)


@app.command()
def dashboard(
    *,
    engine: EngineOption = EngineChoice.BOTH,
    sizes: Annotated[str, typer.Option(help="Open positions to load, comma-separated.")] = "10,10000,100000",
    pages: Annotated[int, typer.Option(min=1, help="Pages opened in each cell.")] = 50,
    short: ShortOption = False,
    json_file: JsonOption = None,
    folder: FolderOption = None,
) -> None:
    """Open the dashboard beside 10 to 100,000 open positions."""
    plan = dashboard_command.Plan(
        engines=engine.engines(),
        sizes=SHORT_SIZES if short else tuple(sorted(_positive_numbers(sizes, "--sizes"))),
        pages=5 if short else pages,
        folder=folder,
    )
    dashboard_command.run(plan, new_console(), json_file)


@app.command()
def reconcile(
    *,
    engine: EngineOption = EngineChoice.BOTH,
    seconds: SecondsOption = 10.0,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds whose pairs are counted together.")] = 3,
    positions: Annotated[int, typer.Option(min=1, help="Open positions on each side.")] = 10_000,
    own_process: Annotated[bool, typer.Option(help="Look in a process of its own, as the service does.")] = True,
    short: ShortOption = False,
    json_file: JsonOption = None,
    folder: FolderOption = None,
) -> None:
    """Measure a reconciliation of many positions, and what reservations feel of it."""
    plan = reconcile_command.Plan(
        engines=engine.engines(), positions=500 if short else positions,
        seconds=SHORT_SECONDS * 3 if short else seconds, rounds=1 if short else rounds, own_process=own_process,
        folder=folder,
    )  # fmt: skip
    reconcile_command.run(plan, new_console(), json_file)


def _pace(seconds: float) -> Pace:
    return Pace(warmup_seconds=seconds * WARMUP_SHARE, measured_seconds=seconds)


def _positive_numbers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of positive whole numbers such as 1,16,64", param_hint=option)
    return tuple(dict.fromkeys(int(part) for part in parts))


def _known_forms(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    unknown = [name for name in names if name not in throughput_command.FORMS]
    if unknown:
        known = ", ".join(throughput_command.FORMS)
        raise typer.BadParameter(f"unknown form {unknown[0]!r}; known: {known}", param_hint="--forms")
    return names


def main() -> None:
    """Run a command. A cell that fails its check ends the program with status 1 and an error message."""
    # SIGTERM would leave the private server running, so exit through the context managers instead.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    # The private server's library warns about a desktop folder that is not needed here.
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR is not set")
    try:
        app()
    except BenchmarkError as error:
        Console(stderr=True).print(f"benchmark: {error}", style="red", markup=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
