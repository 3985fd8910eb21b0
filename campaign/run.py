"""Plays rounds one after the other, each in a folder of its own, until the time is over."""

from __future__ import annotations

import shutil
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from campaign.processes import CampaignError
from campaign.rounds import Round
from campaign.stage import Outcome, Skipped, Stage
from campaign.templates import Templates


@dataclass(frozen=True)
class Plan:
    """What to play. minutes: repeat the rounds until so many are over; None: each once. seed: of everything random."""

    rounds: Sequence[Round]
    minutes: float | None
    seed: int
    short: bool
    programs: Path
    folder: Path | None
    keep: bool


def run(plan: Plan, say: Callable[[str], None]) -> list[Outcome]:
    """Play the plan, and return the outcome of each round played, in order."""
    outcomes: list[Outcome] = []
    with _folder(plan) as folder:
        templates = Templates(_made(folder / "templates"), plan.programs)
        deadline = time.monotonic() + (plan.minutes or 0) * 60
        waiting = deque(plan.rounds)
        while waiting and (len(outcomes) < len(plan.rounds) if plan.minutes is None else time.monotonic() < deadline):
            played, number = waiting.popleft(), len(outcomes) + 1
            with _round_folder(folder / f"{number:03}-{played.name}", plan) as here:
                outcome = _play(played, plan, here, templates, number, say)
            outcomes.append(outcome)
            say(f"{played.name}: {_summary(outcome)}")
            if outcome.skipped is None:
                waiting.append(played)
            if not outcome.is_clean:
                say(f"{played.name}: its databases, logs and answers are kept in {here}")
            elif not plan.keep:
                shutil.rmtree(here, ignore_errors=True)
    return outcomes


def _play(
    played: Round, plan: Plan, folder: Path, templates: Templates, number: int, say: Callable[[str], None]
) -> Outcome:
    outcome = Outcome(played.name)
    stage = Stage(
        folder=folder,
        seed=plan.seed * 1000 + number,
        short=plan.short,
        programs=plan.programs,
        templates=templates,
        say=lambda text: say(f"{played.name}: {text}"),
        outcome=outcome,
    )
    begun = time.monotonic()
    try:
        with stage.ends:
            played.play(stage)
    except Skipped as reason:
        outcome.skipped = str(reason)
    except CampaignError as error:
        outcome.problems.append(f"the round broke off: {error}")
    except Exception:  # noqa: BLE001 - one broken round must not end the campaign, and is shown in full
        outcome.problems.append(f"the round broke off: {traceback.format_exc(limit=-6)}")
    outcome.seconds = time.monotonic() - begun
    return outcome


def _summary(outcome: Outcome) -> str:
    if outcome.skipped:
        return f"skipped: {outcome.skipped}"
    slowest = f", slowest recovery {max(outcome.recoveries):.1f} s" if outcome.recoveries else ""
    broken = "; ".join([*outcome.lost[:2], *outcome.doubled[:2], *outcome.problems[:3]])
    counts = f"{outcome.acknowledged} acknowledged, {len(outcome.lost)} lost, {len(outcome.doubled)} doubled"
    errors = ", ".join(f"{count} x {name}" for name, count in sorted(outcome.errors.items()))
    return f"{counts}{slowest} ({outcome.seconds:.0f} s; {errors or 'no errors'}){': ' + broken if broken else ''}"


@contextmanager
def _folder(plan: Plan) -> Iterator[Path]:
    """Make the campaign's folder. Only the folders of rounds that showed something wrong are left in it."""
    folder = Path(tempfile.mkdtemp(prefix="ledger-campaign-", dir=plan.folder))
    folder.chmod(0o755)  # PostgreSQL's user must reach its own folders in it
    try:
        yield folder
    finally:
        if not plan.keep:
            shutil.rmtree(folder / "templates", ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _round_folder(folder: Path, plan: Plan) -> Iterator[Path]:
    """Make the folder of a round, and remove it again when the campaign is interrupted."""
    folder.mkdir()
    try:
        yield folder
    except BaseException:
        if not plan.keep:
            shutil.rmtree(folder, ignore_errors=True)
        raise


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
