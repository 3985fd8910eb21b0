"""`ledger-sizer reconcile` and `drifts`: compares the ledger with the exchange, and decides about differences."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ledger_sizer.cli import errors, options, output, rename_coin
from ledger_sizer.cli.drift_decisions import decide_many
from ledger_sizer.cli.drifts import (
    LIST_HELP,
    SHOW_HELP,
    Account,
    Kind,
    State,
    Symbol,
    Venue,
    list_drifts,
    show,
    show_drifts,
    show_findings,
)
from ledger_sizer.cli.help_text import NEVER_DENIED, help_epilog
from ledger_sizer.cli.options import AdoptedTag, AnyPortfolio, DatabaseUrl, Json
from ledger_sizer.cli.output import Column
from ledger_sizer.cli.verb_commands import verb_command
from ledger_sizer.model.commands import Reconciled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Engine

    from ledger_sizer.config import AppSettings
    from ledger_sizer.ledger.ledger import Ledger
    from ledger_sizer.model.reconciliation import Drift, Run
    from ledger_sizer.reconcile.listings import DriftChoice
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
            if report.run.id:
                show_drifts(report.live, empty="no differences")
            else:
                show_findings(report.findings, empty="no differences")
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
    listed = [
        ("no positions", f"{entry['venue']} {entry['account']}: {_listed_text(entry['listed'])}")
        for entry in run.fetched
        if entry.get("listed", {}).get("count")
    ]
    output.details([("seconds", run.duration_seconds), ("found", counts or None), *problems, *told, *listed])


def _listed_text(listed: "Mapping[str, Any]") -> str:
    """Return how many assets are nobody's position, and the first of them."""
    names = [f"{asset} {units}" for asset, units in listed["assets"].items()]
    more = ["..."] if listed["count"] > len(names) else []
    return f"{listed['count']} assets: {', '.join([*names, *more])}"


drifts = typer.Typer(rich_markup_mode=None)

DRIFTS_HELP = help_epilog("drifts list --state live", "drifts ignore 1 --reason 'known to ops'", exits=NEVER_DENIED)


@drifts.callback(epilog=DRIFTS_HELP)
def group() -> None:
    """List the differences between ledger and exchange, and decide about them.

    Each decision stands in the audit chain, with who and why.
    """


drifts.command("list", epilog=LIST_HELP)(list_drifts)
drifts.command("show", epilog=SHOW_HELP)(show)

CoveringPolicy = Literal["cash", "fees", "ignore"]

DriftIds = Annotated[
    list[str] | None, typer.Argument(metavar="[DRIFT]...", help="Their numbers, as `drifts list` shows them.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; kept in the audit chain.")]
Every = Annotated[bool, typer.Option("--all", help="All live ones to which it applies, as far as they match.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done, and what it is worth.")]
SOME_REFUSED = {1: "failure, or some were refused", 3: ""}

ADOPT_HELP = help_epilog(
    "drifts adopt 1 --reason 'opened by hand'",
    "drifts adopt 1 --tag strategy=carry --reason 'from before'",
    "drifts adopt --all --symbol ETH --reason 'taken over' --dry-run",
    exits=SOME_REFUSED,
)
IGNORE_HELP = help_epilog(
    "drifts ignore 1 --reason 'not ours'",
    "drifts ignore 2 --asset --policy fees --reason 'pays fees'",
    "drifts ignore --all --venue bybit --reason 'not ours'",
    exits=SOME_REFUSED,
)
CLOSE_HELP = help_epilog("drifts close 1 --reason 'should not be there'", exits=SOME_REFUSED)


@drifts.command("adopt", epilog=ADOPT_HELP)
def adopt(
    reason: Reason,
    numbers: DriftIds = None,
    price: Annotated[str | None, typer.Option("--price", metavar="USD", help="Where the exchange named none.")] = None,
    tag: AdoptedTag = None,
    single: Annotated[
        bool, typer.Option("--single", help="This side alone, also where another drift is the other side of a hedge.")
    ] = False,
    every: Every = False,
    portfolio: AnyPortfolio = None,
    state: State = None,
    kind: Kind = None,
    venue: Venue = None,
    account: Account = None,
    symbol: Symbol = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Make the ledger say what the exchange shows, for one drift or for many.

    More there: it becomes a position of the ledger, together with what hedges it there: both drifts are decided. Less
    there: the newest positions of that market are released. Of many each is decided independently: one that is refused
    does not stop the others.
    """
    if price is not None and (every or dry_run or len(numbers or ()) != 1):
        errors.bad_input("--price is for one drift", "price")
    more = {"tags": options.tags(tag), "pair": not single}
    if one := _only_one(numbers, every, dry_run):
        exact = None if price is None else options.decimal(price, "price")
        return _decide("adopt", one, reason, as_json, database_url, price=exact, **more)
    chosen = _chosen(state, kind, venue, account, symbol)
    return decide_many(
        "adopt", numbers, chosen, portfolio, every=every, reason=reason, dry_run=dry_run, as_json=as_json,
        url=database_url, **more,
    )  # fmt: skip


@drifts.command("ignore", epilog=IGNORE_HELP)
def ignore(
    reason: Reason,
    numbers: DriftIds = None,
    every: Every = False,
    portfolio: AnyPortfolio = None,
    state: State = None,
    kind: Kind = None,
    venue: Venue = None,
    account: Account = None,
    symbol: Symbol = None,
    asset: Annotated[bool, typer.Option("--asset", help="Decide about the asset of this account, once.")] = False,
    policy: Annotated[
        CoveringPolicy | None, typer.Option("--policy", help="With --asset: what it is; ignore if not given.")
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Let differences stand as they are, until they change; with --asset, whatever its size from now on.

    What the ledger itself holds of an asset must be there all the same, unless it is cash. `drifts policies` lists what
    was decided.
    """
    if one := _only_one(numbers, every, dry_run):
        return _decide("ignore", one, reason, as_json, database_url, asset=asset, policy=policy)
    if asset or policy is not None:
        errors.bad_input("--asset and --policy are for one drift", "asset")
    chosen = _chosen(state, kind, venue, account, symbol)
    return decide_many(
        "ignore", numbers, chosen, portfolio, every=every, reason=reason, dry_run=dry_run, as_json=as_json,
        url=database_url,
    )  # fmt: skip


@drifts.command("close", epilog=CLOSE_HELP)
def close(
    reason: Reason,
    numbers: DriftIds = None,
    every: Every = False,
    portfolio: AnyPortfolio = None,
    state: State = None,
    kind: Kind = None,
    venue: Venue = None,
    account: Account = None,
    symbol: Symbol = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    database_url: DatabaseUrl = None,
) -> int:
    """Ask whoever trades to close them at the exchange; each counts until the exchange shows it gone."""
    if one := _only_one(numbers, every, dry_run):
        return _decide("close", one, reason, as_json, database_url)
    chosen = _chosen(state, kind, venue, account, symbol)
    return decide_many(
        "close", numbers, chosen, portfolio, every=every, reason=reason, dry_run=dry_run, as_json=as_json,
        url=database_url,
    )  # fmt: skip


def _only_one(numbers: list[str] | None, every: bool, dry_run: bool) -> str | None:
    return numbers[0] if numbers and len(numbers) == 1 and not every and not dry_run else None


def _chosen(*filters: str | None) -> "DriftChoice":
    from ledger_sizer.reconcile.listings import DriftChoice

    return DriftChoice(*filters)


drifts.command("rename", epilog=rename_coin.RENAME_HELP)(rename_coin.rename)

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
    asked = ", close requested" if done.requested and done.live else ""
    output.headline(f"{done.name} is {done.state}{asked}", "ok")
    output.details(
        [("kind", done.kind), ("subject", f"{done.subject} {done.side}".strip()), ("decided", _decision_text(done))]
    )
    return 0


def _decision_text(drift: "Drift") -> str:
    return "" if drift.actor is None else f"{drift.actor}: {drift.reason}"
