"""What became of a drift that ends because others tell its rest, such as a hedge of which one side was adopted away."""

from collections.abc import Collection, Mapping, MutableSequence, Sequence
from dataclasses import replace

from sqlalchemy import Connection, update

from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.storage.tables import DriftRow

_NAMED_MAX = 3
"""Drifts that are named where one is continued as several."""


def name_heirs(
    connection: Connection,
    resolved: MutableSequence[Drift],
    live: Sequence[Drift],
    heirs: Mapping[int, Collection[str]],
) -> None:
    """Name, in the reasons of drifts that ended, the drifts that continue them. Those have their numbers by now.

    heirs: by the place in `resolved`, the positions that the drifts are about now.
    """
    for place, names in heirs.items():
        found = [one for one in live if one.kind == "legs_unequal" and one.subject in names]
        if found:
            drift = replace(resolved[place], reason=_continued_as(found))
            connection.execute(update(DriftRow).where(DriftRow.id == drift.id).values(reason=drift.reason))
            resolved[place] = drift


def _continued_as(found: Sequence[Drift]) -> str:
    """Say which drifts tell what another one told."""
    named = sorted(found, key=lambda one: one.id)[:_NAMED_MAX]
    numbers, subjects = ", ".join(str(one.id) for one in named), ", ".join(one.subject for one in named)
    more = f" and {len(found) - len(named)} more" if len(found) > len(named) else ""
    return f"it is drift{'s' * (len(found) > 1)} {numbers} about {subjects}{more} now"
