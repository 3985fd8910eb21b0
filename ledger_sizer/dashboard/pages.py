"""Renders the pages as HTML. Escapes every value. A page has no inline script or style, nor any of another origin."""

from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined

from ledger_sizer import __version__
from ledger_sizer.dashboard import formatting
from ledger_sizer.dashboard.assets import asset_url
from ledger_sizer.dashboard.chart import HEIGHT, WIDTH, chart
from ledger_sizer.dashboard.confirm_forms import ConfirmForm, page_of
from ledger_sizer.dashboard.labels import actor_label, decision_label
from ledger_sizer.model import drift_words
from ledger_sizer.model.net import Net
from ledger_sizer.model.overview import Overview, OverviewQuery
from ledger_sizer.model.tags import NO_TAGS, Tags
from ledger_sizer.rules.explain import Explanation
from ledger_sizer.wire.overviews import overview_query_to_params

BAR_WIDTH = 120
HOURS = {1: "1 h", 6: "6 h", 24: "24 h", 168: "7 d"}
"""Ranges of the chart, with their labels."""
NET_ROWS_MAX = 25
"""Coins whose net is shown; there are more in `ledger-sizer net`."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who views a page. name, role: of the API key. signed_in: False without keys. form_token: goes with each form.

    bound: whether the key is for some portfolios only. tags: those to which it is bound.
    """

    name: str
    role: str
    signed_in: bool
    form_token: str
    bound: bool = False
    tags: Tags = NO_TAGS

    @property
    def may_steer(self) -> bool:
        """Whether the visitor may halt and resume, and decide about drifts."""
        return self.role == "admin" and not self.tags

    def may_steer_scope(self, scope: str) -> bool:
        """Whether the visitor may halt and resume this scope."""
        return self.may_steer or (self.role == "admin" and scope in self.tags.scopes[1:])

    @property
    def may_steer_desk(self) -> bool:
        """Whether the visitor may halt and resume the desk: all portfolios together."""
        return self.may_steer and not self.bound


def dashboard_page(overview: Overview, query: OverviewQuery, visitor: Visitor, net: Net | None = None) -> str:
    """Return the dashboard. net: of the portfolio that is shown in full; None without one."""
    detail = overview.detail
    return _render(
        "desk.html",
        overview=overview,
        detail=detail,
        chart=None if detail is None else chart(detail, overview.read_at),
        query=query if detail is None else replace(query, portfolio=detail.name),
        hours=HOURS,
        visitor=visitor,
        net=net,
        net_rows_max=NET_ROWS_MAX,
    )


def login_page(form_token: str, problem: str | None = None) -> str:
    """Return the form that asks for an API key. problem: why the last try failed."""
    return _render("login.html", form_token=form_token, problem=problem)


def confirm_page(form: ConfirmForm, visitor: Visitor) -> str:
    """Return the page that asks for a confirmation."""
    return _render("confirm.html", form=form, visitor=visitor)


def explanation_page(explanation: Explanation, visitor: Visitor) -> str:
    """Return the page that explains a decision."""
    decision = explanation.decision
    headline, *lines = explanation.text.splitlines()
    return _render("explanation.html", decision=decision, headline=headline, lines=lines, visitor=visitor)


def problem_page(title: str, words: str) -> str:
    """Return the page that shows an error."""
    return _render("problem.html", title=title, words=words)


def href(query: OverviewQuery, **changes: Any) -> str:
    """Return the dashboard's URL for `query` with these changes, without what equals the default."""
    default = overview_query_to_params(OverviewQuery())
    params = {
        name: value
        for name, value in overview_query_to_params(replace(query, **changes)).items()
        if default.get(name) != value
    }
    return f"/?{urlencode(params)}" if params else "/"


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
        formatting.leg_quantity,
        formatting.leg_terms,
        formatting.short,
        formatting.tags,
        decision_label,
        actor_label,
        drift_words.meaning,
        drift_words.hint,
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
        page_of=page_of,
        pool_bar=formatting.pool_bar,
        pools_scale=formatting.pools_scale,
        seconds_left=formatting.seconds_left,
        time_left=formatting.time_left,
        status_label=formatting.status_label,
        version=__version__,
    )
    return environment


_environment = _make_environment()
