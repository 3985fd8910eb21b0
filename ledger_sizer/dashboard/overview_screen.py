"""Renders an `Overview` for a terminal: what the dashboard shows, in the same figures and words."""

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING

from ledger_sizer.dashboard import formatting
from ledger_sizer.dashboard.labels import decision_label
from ledger_sizer.model import drift_words
from ledger_sizer.model.units import exact_arithmetic

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from ledger_sizer.model.domain import ScopeExposure
    from ledger_sizer.model.overview import Detail, Overview
    from ledger_sizer.model.pools import Pool
    from ledger_sizer.model.reconciliation import Drift

_BAR_WIDTH = 20
_SPARK_LEVELS = "▁▂▃▄▅▆▇█"
_STYLES = {
    "granted": "green",
    "denied": "red",
    "applied": "dim",
    "halted": "bold red",
    "reducing": "bold yellow",
    "unreconciled": "bold red",
    "active": "dim",
    "good": "green",
    "partial": "yellow",
    "failed": "bold red",
    "open": "yellow",
    "confirmed": "bold red",
    "acknowledged": "dim",
}
_ROWS_PER_SCOPE = 3
"""The terminal shows at most one scope for so many rows; reservations, positions and decisions share the rest."""

_ROWS_PER_POOL = 6
"""The same for pools."""

_DRIFTS_MAX = 5


def render_overview(
    overview: "Overview",
    *,
    title: str = "ledger-sizer top",
    source: str,
    width: int,
    height: int | None,
    problem: str = "",
    below_title: Sequence["Text"] = (),
) -> "RenderableType":
    """Return the screen. height: rows to fit into, None for everything. problem: why the overview is not current."""
    from rich.console import Group
    from rich.text import Text

    head = Text.assemble(
        (title, "bold"), f"  {source}  ", (f"{formatting.clock(overview.read_at)}Z", "dim"),
        (f"  {problem}" if problem else "", "bold red"),
    )  # fmt: skip
    below_title = [*below_title, *_desk_line(overview)]
    detail = overview.detail
    if detail is None:
        return Group(head, *below_title, Text("no portfolio yet"))
    limits = _limits(detail)
    scopes, pools, rows = _rows_that_fit(overview, detail, None if height is None else height - len(limits))
    blank = Text("")
    return Group(
        head, *below_title, blank, _summary_line(detail, overview.read_at),
        _exposure_sparkline(detail, overview.read_at, min(width, 160) - 12), blank,
        *_pools(detail, width, pools),
        _scopes(overview, detail, width, scopes), *limits, blank,
        _reconciliation(detail), blank,
        _holds(detail, overview.read_at, rows), blank,
        _positions(detail, overview.read_at, rows), blank,
        _decisions(detail, rows),
    )  # fmt: skip


def _desk_line(overview: "Overview") -> "list[Text]":
    """Return the line about the desk's halt, empty while there is none."""
    from rich.text import Text

    desk = overview.desk
    if desk is None:
        return []
    since = f", since {formatting.moment(desk.since)}, by {desk.actor}" if desk.since else ""
    note = f": {desk.note}" if desk.note else ""
    return [Text(f"the desk is {desk.status}: nothing new is granted in any portfolio{since}{note}", "bold red")]


def _rows_that_fit(overview: "Overview", detail: "Detail", height: int | None) -> tuple[int, int, int]:
    """Return how many scopes, how many pools, and how many rows of each other list, fit into the height."""
    scopes, pools = len(overview.portfolios) + len(detail.scopes) - 1, len(detail.pools)
    if height is None:
        return scopes, pools, 1000
    scopes = max(min(scopes, height // _ROWS_PER_SCOPE), 1)
    pools = min(pools, max(height // _ROWS_PER_POOL, 1))
    # Titles, blank lines, table heads, and the lines of the reconciliation and of the pools.
    rest = height - scopes - 15 - min(len(detail.reconciliation.drifts), _DRIFTS_MAX) - (pools + 3 if pools else 0)
    return scopes, pools, max(rest // 3, 1)


def _summary_line(detail: "Detail", now: datetime) -> "Text":
    from rich.text import Text

    whole = detail.whole
    text = Text.assemble((detail.name, "bold"), "  ", _styled(formatting.status_label(whole, now)))
    for name, figure in (
        ("exposure", formatting.money(whole.exposure)),
        ("cap", formatting.money(whole.cap)),
        ("headroom", formatting.money_floor(whole.headroom)),
        ("open", formatting.money(whole.open)),
        ("held", formatting.money(whole.held)),
    ):
        text.append(f"   {name} ", "dim").append(figure, "bold")
    if whole.overage:
        text.append("   overage ", "red").append(formatting.money(whole.overage), "bold red")
    return text


def _exposure_sparkline(detail: "Detail", until: datetime, width: int) -> "Text":
    """Draw exposure over time: the highest value of each interval, on the scale of the cap."""
    from rich.text import Text

    since = detail.line.since
    span = (until - since).total_seconds()
    highest: list[Decimal | None] = [None] * max(width, 1)
    for point in detail.line.points:
        column = min(max(int((point.at - since).total_seconds() / span * len(highest)), 0), len(highest) - 1)
        highest[column] = max(highest[column] or Decimal(0), point.high)
    top = max([detail.whole.cap or Decimal(0), *[value for value in highest if value is not None]]) or Decimal(1)
    last = Decimal(0)
    sparks = ""
    for value in highest:
        last = last if value is None else value
        sparks += _spark(last, top) if last else " "
    return Text.assemble((f"last {span / 3600:.0f} h  ", "dim"), (sparks, "blue"))


def _spark(value: Decimal, top: Decimal) -> str:
    with exact_arithmetic():
        return _SPARK_LEVELS[min(int(value / top * len(_SPARK_LEVELS)), len(_SPARK_LEVELS) - 1)]


def _table(*titles: str, right: tuple[str, ...] = ()) -> "Table":
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for title in titles:
        flush = title in right
        table.add_column(title, justify="right" if flush else "left", no_wrap=True, overflow="ellipsis")
    return table


def _figure_table(
    width: int,
    names: Sequence[str],
    bars: "Sequence[Text]",
    figures: "dict[str, list[Text]]",
    expendable: Sequence[str],
    statuses: "Sequence[Text]" = (),
) -> "Table":
    """Return a table of names, bars, figures and statuses. No figure is cut: a narrow terminal gets fewer columns.

    names: the title first. figures: by title. expendable: titles of figures that go where there is no room, in this
    order; the bars go before. statuses: the title first; none without such a column.
    """
    lengths = {title: max(len(title), *map(len, column)) for title, column in figures.items()}
    room = width + 2 - sum(2 + max(map(len, column)) for column in (names, statuses) if column)
    room -= sum(2 + length for length in lengths.values())
    for title in expendable:
        if room < 0:
            room += lengths[title] + 2
            del figures[title]
    with_bars = room >= _BAR_WIDTH + 2
    table = _table(names[0], *([""] if with_bars else []), *figures, right=tuple(figures))
    for column in table.columns:
        column.min_width = lengths.get(str(column.header))
    columns = [*([bars] if with_bars else []), *figures.values(), *([statuses[1:]] if statuses else [])]
    if statuses:
        table.add_column(statuses[0], no_wrap=True)
    for row in zip(names[1:], *columns, strict=True):
        table.add_row(*row)
    return table


def _pools(detail: "Detail", width: int, rows: int) -> "list[RenderableType]":
    """Return the picture of the pools, those that lack something first, with a blank line; nothing without pools."""
    from rich.text import Text

    if not detail.pools:
        return []
    shown = sorted(detail.pools, key=lambda pool: not pool.lent_out)[:rows]
    scale = formatting.pools_scale(detail.pools)
    figures = {
        title: [Text(formatting.money(getattr(pool, title.replace(" ", "_")))) for pool in shown]
        for title in ("guaranteed", "used", "kept", "lent out")
    }
    for pool, lent_out in zip(shown, figures["lent out"], strict=True):
        lent_out.stylize("bold red" if pool.lent_out else "")
    names = [f"pools {len(detail.pools) + detail.pools_left_out:,}", *(pool.scope for pool in shown)]
    table = _figure_table(
        width, names, [_pool_bar(pool, scale) for pool in shown], figures, ["kept", "guaranteed", "used"]
    )
    shared = Text.assemble(
        ("shared by all ", "dim"), (formatting.money_floor(detail.shared), "bold"),
        (f" of the headroom {formatting.money_floor(detail.whole.headroom)}", "dim"),
    )  # fmt: skip
    return [table, shared, Text("")]


def _pool_bar(pool: "Pool", scale: Decimal) -> "Text":
    """Draw what a pool uses solid, what is above its guarantee dense, what is kept free light, what it lacks as x."""
    from rich.text import Text

    bar = formatting.pool_bar(pool, scale, _BAR_WIDTH)
    used, above = ("█" * bar.used, "blue"), ("▓" * bar.above, "yellow")
    return Text.assemble(used, above, ("░" * bar.kept, "blue"), ("x" * bar.lent_out, "bold red"))


def _limits(detail: "Detail") -> "list[Text]":
    """Return the lines of the default caps and of the largest positions; none where there are none."""
    defaults = [(default.scope, default.cap) for default in detail.defaults]
    largest = [(one.scope, one.max_position_usd) for one in detail.scopes if one.max_position_usd is not None]
    return [
        _plain(f"{title}: {', '.join(f'{scope} {formatting.money(amount)}' for scope, amount in amounts)}")
        for title, amounts in (("* by default", defaults), ("largest positions", largest))
        if amounts
    ]


def _scopes(overview: "Overview", detail: "Detail", width: int, rows: int) -> "Table":
    lines = [(line.name, line.whole) for line in overview.portfolios]
    lines = [*lines, *((f"  {scope.scope}", scope) for scope in detail.scopes[1:])][:rows]
    scopes = [scope for _, scope in lines]
    mark = " " if detail.defaults else ""
    figures = {
        "exposure": [formatting.money(scope.exposure) for scope in scopes],
        "cap": [formatting.money(scope.cap) + ("*" if scope.cap_from else mark) for scope in scopes],
        "headroom": [formatting.money_floor(scope.headroom) for scope in scopes],
        "open": [formatting.money(scope.open) for scope in scopes],
        "held": [formatting.money(scope.held) for scope in scopes],
    }
    return _figure_table(
        width,
        ["portfolio, scope", *(name for name, _ in lines)],
        [_bar(scope) for scope in scopes],
        {title: [*map(_plain, column)] for title, column in figures.items()},
        ["held", "open", "cap", "headroom"],
        [_plain("status"), *(_styled(formatting.status_label(scope, overview.read_at)) for scope in scopes)],
    )


def _bar(scope: "ScopeExposure") -> "Text":
    """Draw open capital solid, held capital hatched, headroom as dots."""
    from rich.text import Text

    if scope.cap is None:
        return Text("no cap", "dim")
    opened, held = formatting.bar(scope, _BAR_WIDTH)
    colour = "red" if scope.overage else "blue"
    free = _BAR_WIDTH - opened - held
    return Text.assemble(("█" * opened, colour), ("▒" * held, "yellow"), ("·" * free, "dim"))


def _reconciliation(detail: "Detail") -> "RenderableType":
    """Show the last run, and the drifts that are not resolved."""
    from rich.console import Group
    from rich.text import Text

    found = detail.reconciliation
    if found.run_at is None:
        return Text("never compared with an exchange", "dim")
    drifts = f"{found.drift_count:,} drifts" if found.drift_count != 1 else "1 drift"
    head = Text.assemble(
        ("compared with the exchange ", "dim"), f"{formatting.clock(found.run_at)}Z ", _styled(str(found.outcome)),
        ", ledger and exchange agree" if not found.drift_count else f", {drifts}",
    )  # fmt: skip
    lines = [
        Text.assemble(f"  {drift.id} {drift.kind} {drift.where}: {_worth(drift)} ", _styled(drift.state), _next(drift))
        for drift in found.drifts[:_DRIFTS_MAX]
    ]
    return Group(head, *lines)


def _worth(drift: "Drift") -> str:
    return drift_words.difference_words(drift) or drift.detail


def _next(drift: "Drift") -> str:
    hint = drift_words.hint(drift)
    return f"  {hint}" if hint else ""


def _holds(detail: "Detail", now: datetime, rows: int) -> "Table":
    table = _table(f"reservations {detail.held_count:,}", "for", "held", "time left", right=("held", "time left"))
    for position in detail.held.items[:rows]:
        table.add_row(
            position.position_id,
            _plain(formatting.tags(position)),
            formatting.money(position.held),
            formatting.time_left(position, now),
        )
    return table


def _positions(detail: "Detail", now: datetime, rows: int) -> "Table":
    right = ("counts", "held", "age")
    table = _table(f"open positions {detail.open_count:,}", "for", "counts", "held", "legs", "age", right=right)
    for position in detail.open.items[:rows]:
        legs = ", ".join(f"{leg.side} {formatting.leg_quantity(leg)} {leg.symbol}" for leg in position.legs)
        table.add_row(
            position.position_id, _plain(formatting.tags(position)), formatting.money(position.open),
            formatting.money(position.held if position.pending else None), _plain(legs),
            formatting.duration((now - position.opened_at).total_seconds()),
        )  # fmt: skip
    return table


def _decisions(detail: "Detail", rows: int) -> "Table":
    table = _table("seq", "time", "command", "outcome", "in words", right=("seq",))
    for decision in detail.decisions.items[:rows]:
        table.add_row(
            str(decision.seq), formatting.clock(decision.decided_at), decision.command, _styled(decision.outcome),
            _plain(decision_label(decision)),
        )  # fmt: skip
    return table


def _styled(word: str) -> "Text":
    from rich.text import Text

    return Text(word, _STYLES[word])


def _plain(text: str) -> "Text":
    """Return text that is shown as it is: a tag may look like markup."""
    from rich.text import Text

    return Text(text)
