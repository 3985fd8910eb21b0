from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    ok: bool
    figures: dict
    why: str = ""


class Round(NamedTuple):
    name: str
    needs: tuple
    run: Callable
