"""What a round of the real bots is, and what it tells."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Outcome(NamedTuple):
    """ok: whether the promise held. figures: what was measured, by name. why: what went wrong."""

    ok: bool
    figures: dict[str, str]
    why: str = ""


class Round(NamedTuple):
    """One round. needs: packages it imports. run: takes an empty folder, and whether it should be short."""

    name: str
    needs: tuple[str, ...]
    run: Callable[[Path, bool], Outcome]
