"""Converts an `Overview` to JSON and back."""

from collections.abc import Mapping
from dataclasses import asdict
from operator import attrgetter, itemgetter
from typing import Any, NewType

from ledger_sizer.model.domain import Page, Position
from ledger_sizer.model.overview import (
    DeskHalt,
    Detail,
    ExposureLine,
    ExposurePoint,
    Overview,
    OverviewQuery,
    PortfolioLine,
    Reconciliation,
)
from ledger_sizer.wire.codec import PAIRS, Codec, Json, Pair, page_to_json
from ledger_sizer.wire.responses import FIGURES, position_to_json, scope_from_json


def overview_query_to_params(query: OverviewQuery) -> Json:
    """Return the query of `GET /v1/overview`. Without `only`: the service decides which portfolios a key may see."""
    return {name: value for name, value in asdict(query).items() if value is not None and name != "only"}


def _portfolio_to_json(line: PortfolioLine) -> Json:
    return {"portfolio": line.name, **FIGURES.to_json(line.whole)}


def _portfolio_from_json(form: Mapping[str, Any]) -> PortfolioLine:
    return PortfolioLine(form["portfolio"], scope_from_json({"scope": "portfolio", **form}))


CountedPositions = NewType("CountedPositions", Page[Position])
"""A page of a portfolio's positions, written with how many there are in all."""


def _counted_page(count: int, page: Page[Position]) -> Json:
    return {"count": count, **page_to_json(page, position_to_json)}


PAIRS[PortfolioLine] = Pair(_portfolio_to_json, _portfolio_from_json)

POINT = Codec(
    ExposurePoint,
    docs={
        "low": "The lowest exposure since the point before.",
        "high": "The highest exposure since the point before.",
    },
)
LINE = Codec(ExposureLine, "since exact_from points")
RECONCILIATION = Codec(Reconciliation, "run_at outcome drift_count drifts")
DETAIL = Codec(
    Detail,
    "portfolio seq scopes scopes_left_out pools pools_left_out shared defaults held open decisions line reconciliation",
    docs={
        "scopes": "The whole first, then those with a cap or a guarantee, then by exposure.",
        "pools": "The largest guarantees, by name.",
        "shared": "What a request outside of every pool could still have.",
        "defaults": "The cap of each value of a tag name that has none of its own.",
        "held": "Live reservations, the soonest to end first.",
        "open": "Open positions, newest first.",
    },
    write={
        "portfolio": attrgetter("name"),
        "held": lambda detail: _counted_page(detail.held_count, detail.held),
        "open": lambda detail: _counted_page(detail.open_count, detail.open),
    },
    read={
        "name": itemgetter("portfolio"),
        "held_count": lambda form: form["held"]["count"],
        "open_count": lambda form: form["open"]["count"],
    },
    types={"portfolio": str, "held": CountedPositions, "open": CountedPositions},
    later="pools pools_left_out shared defaults",
)
DESK_HALT = Codec(DeskHalt)
OVERVIEW = Codec(
    Overview,
    docs={"desk": "The halt of all portfolios together; null while there is none."},
    # A service of an older version does not tell.
    read={"desk": lambda form: None if form.get("desk") is None else DESK_HALT.from_json(form["desk"])},
)
overview_to_json, overview_from_json = OVERVIEW.to_json, OVERVIEW.from_json
