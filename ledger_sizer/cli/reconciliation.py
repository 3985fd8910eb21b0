"""`ledger-sizer reconcile` and `drifts`: compares the ledger with the exchange, and decides about differences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AdoptedTag, AnyPortfolio, Cursor, DatabaseUrl, Json, Limit
from ledger_sizer.cli.output import Column
from ledger_sizer.cli.verb_commands import verb_command
from ledger_sizer.model.choices import DriftFilter, DriftKind
from ledger_sizer.model.commands import Reconciled

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from ledger_sizer.config import AppSettings
    from ledger_sizer.ledger.ledger import Ledger
    from ledger_sizer.model.reconciliation import Drift, Run
    from ledger_sizer.reconcile.run import Reconciler


RECONCILE_HELP = help_epilog(
    "reconcile --dry-run", "reconcile --json", exits={1: "failure, or an account was not fetched", 3: ""}
)


@contextmanager
def _ledger_and_engine(url: str | None) -> "Iterator[tuple[AppSettings, Ledger, Engine]]":
    """Open the ledger at `url`. Yields its settings, the ledger, and an engine for the tables beside it."""
    from ledger_sizer.cli.ledger_session import engine_at, ledger_at

    with ledger_at(url) as ledger, engine_at(url) as engine:
        yield ledger.settings, ledger, engine


@contextmanager
def _reconciler(url: str | None) -> "Iterator[Reconciler]":
    """Yield a reconciler over the accounts of the settings, on the ledger at `url`."""
    from contextlib import ExitStack

    from ledger_sizer.exchanges.accounts import open_accounts
    from ledger_sizer.reconcile.alerts import Alerts
    from ledger_sizer.reconcile.inspection import LocalInspector
    from ledger_sizer.reconcile.run import Reconciler

    with _ledger_and_engine(url) as (settings, ledger, engine), ExitStack() as stack:
        accounts = open_accounts(settings.exchange)
        for account in accounts:
            stack.callback(account.close)
        alerts = Alerts(engine, settings.reconcile)
        stack.callback(alerts.close)
        yield Reconciler(ledger, engine, LocalInspector(engine, accounts, settings), settings, observe=[alerts.observe])


def reconcile(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only look: nothing is recorded, counted or frozen.")
    ] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Compare the ledger with the exchange accounts of the settings, once.

    What the exchange shows beyond the ledger is counted at once; a drift seen in RECONCILE_CONFIRMATIONS runs does
    what its policy says. See docs/reconciliation.md.
    """
    from ledger_sizer.wire.reconciliation import report_to_json

    with _reconciler(database_url) as reconciler:
        reports = reconciler.run(dry_run=dry_run)
    if as_json:
        output.write_json({"items": [report_to_json(report) for report in reports]})
    else:
        for report in reports:
            _show_run(report.run)
            rows = [
                (found.kind, found.market.venue, found.market.account, found.market.subject, found.market.side,
                 found.ledger_quantity, found.venue_quantity, found.detail)
                for found in report.findings
            ]  # fmt: skip
            titles = ("kind", "venue", "account", "subject", "side", "ledger", "exchange")
            columns = [*(Column(title) for title in titles), Column("detail", priority=20)]
            output.table(columns, rows, empty="no differences")
    good = all(report.run.outcome == "good" for report in reports)
    return errors.DONE if good else errors.FAILED


def _show_run(run: "Run") -> None:
    name = f"run {run.id}" if run.id else "dry run"
    output.headline(f"{name} of {run.portfolio}: {run.outcome}", "ok" if run.outcome == "good" else "denied")
    counts = ", ".join(f"{name} {number}" for name, number in sorted(run.found.items()))
    told = [
        (title, f"{entry['venue']} {entry['account']}: {one}")
        for title, name in (("not read", "unread"), ("not asked for", "not_asked"))
        for entry in run.fetched
        for one in entry.get(name, ())  # runs that an older version recorded lack these
    ]
    problems = [("problem", str(one)) for entry in run.fetched for one in entry["problems"]]
    output.details([("seconds", run.duration_seconds), ("found", counts or None), *problems, *told])


drifts = typer.Typer(rich_markup_mode=None)

DRIFTS_HELP = help_epilog("drifts list --state live", "drifts ignore 1 --reason 'known to ops'", exits=NEVER_DENIED)


@drifts.callback(epilog=DRIFTS_HELP)
def group() -> None:
    """List the differences between ledger and exchange, and decide about them.

    Each decision stands in the audit chain, with who and why.
    """


@drifts.command("list", epilog=help_epilog("drifts list --state live --json", exits=NEVER_DENIED))
def list_drifts(
    portfolio: AnyPortfolio = None,
    state: Annotated[DriftFilter | None, typer.Option("--state", help="live: open or confirmed.")] = None,
    kind: Annotated[DriftKind | None, typer.Option("--kind", help="One kind only.")] = None,
    cursor: Cursor = None,
    limit: Limit = "100",
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Show drifts, newest first."""
    from ledger_sizer.reconcile import drifts as rows
    from ledger_sizer.wire.reconciliation import drift_to_json

    with _ledger_and_engine(database_url) as (_, _, engine):
        page = rows.list_drifts(
            engine, portfolios=None if portfolio is None else [portfolio], state=state, kind=kind, cursor=cursor,
            limit=options.whole_number(limit, "limit"),
        )  # fmt: skip
    if as_json:
        output.write_json_list((drift_to_json(drift) for drift in page), lambda: page.cursor)
        return 0
    output.table(
        [Column("drift"), Column("kind"), Column("state", alert=True), Column("policy"), Column("subject"),
         Column("side"), Column("ledger"), Column("exchange"), Column("counted"), Column("since"),
         Column("decided", priority=20)],
        [
            (drift.id, drift.kind, drift.state, drift.policy, drift.subject, drift.side, drift.ledger_quantity,
             drift.venue_quantity, _counted_as(drift), drift.opened_at, _decision_text(drift))
            for drift in page
        ],
        empty="no drifts",
    )  # fmt: skip
    if page.cursor is not None:
        output.note(f"more: --cursor {page.cursor}")
    return 0


CoveringPolicy = Literal["cash", "fees", "ignore"]
DriftId = Annotated[str, typer.Argument(metavar="DRIFT", help="Its number, as `drifts list` shows it.")]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the audit chain.")]


@drifts.command(
    "adopt",
    epilog=help_epilog(
        "drifts adopt 1 --reason 'opened by hand'", "drifts adopt 1 --tag strategy=carry --reason 'from before'",
        exits=NEVER_DENIED,
    ),
)  # fmt: skip
def adopt(
    drift: DriftId,
    reason: Reason,
    price: Annotated[str | None, typer.Option("--price", metavar="USD", help="Where the exchange named none.")] = None,
    tag: AdoptedTag = None,
    single: Annotated[
        bool, typer.Option("--single", help="This side alone, also where another drift is the other side of a hedge.")
    ] = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Make the ledger say what the exchange shows.

    More there: it becomes a position of the ledger, together with what hedges it there: both drifts are decided. Less
    there: the newest positions of that market are released.
    """
    more = {"tags": options.tags(tag), "pair": not single}
    exact = None if price is None else options.decimal(price, "price")
    return _decide("adopt", drift, reason, as_json, database_url, price=exact, **more)


@drifts.command(
    "ignore",
    epilog=help_epilog(
        "drifts ignore 1 --reason 'not ours'",
        "drifts ignore 1 --asset --policy fees --reason 'pays fees'",
        exits=NEVER_DENIED,
    ),
)
def ignore(
    drift: DriftId,
    reason: Reason,
    asset: Annotated[bool, typer.Option("--asset", help="Decide about the asset of this account, once.")] = False,
    policy: Annotated[
        CoveringPolicy | None, typer.Option("--policy", help="With --asset: what it is; ignore if not given.")
    ] = None,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Let the difference stand as it is, until it changes; with --asset, whatever its size from now on.

    What the ledger itself holds of an asset must be there all the same, unless it is cash. `drifts policies` lists what
    was decided.
    """
    return _decide("ignore", drift, reason, as_json, database_url, asset=asset, policy=policy)


@drifts.command("close", epilog=help_epilog("drifts close 1 --reason 'should not be there'", exits=NEVER_DENIED))
def close(drift: DriftId, reason: Reason, as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Ask whoever trades to close it at the exchange; it counts until the exchange shows it gone."""
    return _decide("close", drift, reason, as_json, database_url)


_TRUST = """Go on without the reconciliation: its age stops no reservation any more.

What a drift froze stays frozen. Where a reconciliation is scheduled, its next good run sets an end again."""

drifts.command("trust", epilog=help_epilog("drifts trust --note 'no reconciliation any more'", exits=NEVER_DENIED))(
    verb_command(Reconciled, positional=(), fixed={"fresh_until": None}, help_text=_TRUST)
)


@drifts.command("policies", epilog=help_epilog("drifts policies", "drifts policies --json", exits=NEVER_DENIED))
def policies(portfolio: AnyPortfolio = None, as_json: Json = False, database_url: DatabaseUrl = None) -> int:
    """Show whose money each asset is: what was decided about drifts, then the settings, then the default of dollars.

    The most specific pattern holds, and what was decided before what is set.
    """
    from ledger_sizer.reconcile.decided_policies import effective_policies, read_decided
    from ledger_sizer.wire.reconciliation import rule_to_json

    with _ledger_and_engine(database_url) as (settings, _, engine):
        decided = read_decided(engine, None if portfolio is None else [portfolio])
        rules = [*decided, *effective_policies(settings.reconcile)]
    if as_json:
        output.write_json({"items": [rule_to_json(rule) for rule in rules]})
        return 0
    output.table(
        [Column("number"), Column("pattern"), Column("policy"), Column("from"), Column("portfolio"), Column("since"),
         Column("decided", priority=20)],
        [
            (rule.id, rule.pattern, rule.policy, rule.source, rule.portfolio, rule.decided_at,
             "" if rule.actor is None else f"{rule.actor}: {rule.reason}")
            for rule in rules
        ],
        empty="no policies: every asset is compared",
    )  # fmt: skip
    return 0


@drifts.command("take-back", epilog=help_epilog("drifts take-back 1 --reason 'traded now'", exits=NEVER_DENIED))
def take_back(
    policy: Annotated[str, typer.Argument(metavar="POLICY", help="Its number, as `drifts policies` shows it.")],
    reason: Reason,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """End a decided policy: the asset is compared again from the next run on."""
    from ledger_sizer.reconcile.operator import Operator
    from ledger_sizer.wire.reconciliation import rule_to_json

    number = options.whole_number(policy, "policy")
    with _ledger_and_engine(database_url) as (_, ledger, engine):
        rule = Operator(ledger, engine).take_back(number, reason=reason)
    if as_json:
        output.write_json(rule_to_json(rule))
    else:
        output.headline(f"{rule.pattern} is no longer {rule.policy}", "ok")
    return 0


def _decide(action: str, drift: str, reason: str, as_json: bool, url: str | None, **more: Any) -> int:
    from ledger_sizer.reconcile.operator import Operator
    from ledger_sizer.wire.reconciliation import drift_to_json

    number = options.whole_number(drift, "drift")
    with _ledger_and_engine(url) as (_, ledger, engine):
        done = Operator(ledger, engine).act(action, number, reason=reason, **more)
    if as_json:
        output.write_json(drift_to_json(done))
        return 0
    asked = ", close requested" if done.requested else ""
    output.headline(f"{done.name} is {done.state}{asked}", "ok")
    output.details(
        [("kind", done.kind), ("subject", f"{done.subject} {done.side}".strip()), ("decided", _decision_text(done))]
    )
    return 0


def _counted_as(drift: "Drift") -> str:
    if drift.position is not None and drift.live:
        return f"{drift.portfolio}-{drift.position}"
    return "no price" if drift.live and drift.excess > 0 and drift.price is None else ""


def _decision_text(drift: "Drift") -> str:
    return "" if drift.actor is None else f"{drift.actor}: {drift.reason}"
