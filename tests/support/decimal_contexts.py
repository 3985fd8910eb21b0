"""Decimal contexts that an application or a library may leave in a thread, all of them hostile to arithmetic."""

from __future__ import annotations

import decimal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SIGNALS = [
    decimal.Clamped, decimal.DivisionByZero, decimal.FloatOperation, decimal.Inexact, decimal.InvalidOperation,
    decimal.Overflow, decimal.Rounded, decimal.Subnormal, decimal.Underflow,
]  # fmt: skip

HOSTILE: dict[str, dict[str, Any]] = {
    "one_digit_all_traps": {
        "prec": 1, "rounding": decimal.ROUND_UP, "Emin": -1, "Emax": 1, "capitals": 0, "clamp": 1, "traps": _SIGNALS,
    },
    "three_digits_up_no_traps": {
        "prec": 3, "rounding": decimal.ROUND_UP, "Emin": -2, "Emax": 2, "capitals": 0, "clamp": 0, "traps": [],
    },
    "three_digits_down": {"prec": 3, "rounding": decimal.ROUND_FLOOR, "traps": [decimal.InvalidOperation]},
}  # fmt: skip
"""By name: the attributes of a context."""


@contextmanager
def hostile(name: str) -> Iterator[decimal.Context]:
    """Put this thread, and every thread that starts meanwhile, into the context of this name.

    Fails at the end if this thread's context is not as it was, flags included.
    """
    chosen = decimal.Context(**HOSTILE[name], flags=[])
    template = decimal.DefaultContext.copy()
    with decimal.localcontext(chosen) as context:
        _assign(decimal.DefaultContext, chosen)
        try:
            yield context
            assert _attributes(decimal.getcontext()) == _attributes(chosen), "the caller's context was changed"
        finally:
            _assign(decimal.DefaultContext, template)


def _assign(target: decimal.Context, source: decimal.Context) -> None:
    for name in ("prec", "rounding", "Emin", "Emax", "capitals", "clamp"):
        setattr(target, name, getattr(source, name))
    for signal in _SIGNALS:
        target.traps[signal] = source.traps[signal]


def _attributes(context: decimal.Context) -> dict[str, Any]:
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
    signals = {signal.__name__: (context.traps[signal], context.flags[signal]) for signal in _SIGNALS}
    return {name: getattr(context, name) for name in names} | signals
