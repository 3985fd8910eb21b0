from typing import NamedTuple, Callable
from pathlib import Path


class Outcome(NamedTuple):
    ok: bool
    figures: dict
    why: str = ""


class Round(NamedTuple):
    name: str
    needs: tuple
    run: Callable
