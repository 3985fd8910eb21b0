"""The pages as HTML. Everything shown is escaped; nothing in a page is a script, a style or another origin's."""

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from ledger_sizer import __version__
from ledger_sizer.dashboard import formatting
from ledger_sizer.dashboard.assets import asset_url
from ledger_sizer.dashboard.chart import HEIGHT, WIDTH, chart
from ledger_sizer.dashboard.confirm_forms import ConfirmForm
from ledger_sizer.dashboard.labels import decision_label
from ledger_sizer.model.overview import Overview, OverviewQuery
from ledger_sizer.rules.explain import Explanation
from ledger_sizer.wire.overviews import overview_query_to_params

BAR_WIDTH = 120
HOURS = {1: "1 h", 6: "6 h", 24: "24 h", 168: "7 d"}
"""How far back the chart can be asked to go."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks. name, role: of the API key; signed_in: False where the service has no keys. form_token: for posts."""

    name: str
    role: str
    signed_in: bool
    form_token: str

    @property
    def may_steer(self) -> bool:
        """Whether halt, resume and the like are offered."""
        return self.role == "admin"


def desk_page(overview: Overview, look: OverviewQuery, visitor: Visitor) -> str:
    """The dashboard."""
    detail = overview.detail
    return _render(
        "desk.html",
        overview=overview,
        detail=detail,
        chart=None if detail is None else chart(detail, overview.read_at),
        look=look if detail is None else replace(look, portfolio=detail.name),
        hours=HOURS,
        visitor=visitor,
    )


def login_page(form_token: str, problem: str | None = None) -> str:
    """The form that asks for an API key. problem: why the last try failed."""
    return _render("login.html", form_token=form_token, problem=problem)


def confirm_page(form: ConfirmForm, visitor: Visitor) -> str:
    """The page that asks for a confirmation."""
    return _render("confirm.html", form=form, visitor=visitor)


def explanation_page(explanation: Explanation, visitor: Visitor) -> str:
    """Why a decision came out as it did."""
    decision = explanation.decision
    headline, *lines = explanation.text.splitlines()
    return _render("explanation.html", decision=decision, headline=headline, lines=lines, visitor=visitor)


def problem_page(title: str, words: str) -> str:
    """What went wrong, in words."""
    return _render("problem.html", title=title, words=words)


def href(look: OverviewQuery, **changes: Any) -> str:
    """The dashboard's address that shows `look` with these changes; what is as by default is left out."""
    default = overview_query_to_params(OverviewQuery())
    query = {
        name: value
        for name, value in overview_query_to_params(replace(look, **changes)).items()
        if default.get(name) != value
    }
    return f"/?{urlencode(query)}" if query else "/"


def _render(template: str, **context: Any) -> str:
    return _environment.get_template(template).render(**context)


def _make_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ledger_sizer.dashboard"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    for filter_ in (
        formatting.money,
        formatting.money_floor,
        formatting.exact,
        formatting.percent,
        formatting.clock,
        formatting.moment,
        formatting.duration,
        formatting.tags,
        decision_label,
    ):
        environment.filters[filter_.__name__] = filter_
    environment.globals.update(
        asset_url=asset_url,
        bar=formatting.bar,
        bar_width=BAR_WIDTH,
        drift_actions=formatting.drift_actions,
        chart_width=WIDTH,
        chart_height=HEIGHT,
        href=href,
        seconds_left=formatting.seconds_left,
        status_label=formatting.status_label,
        version=__version__,
    )
    return environment


_environment = _make_environment()
