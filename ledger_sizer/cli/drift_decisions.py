"""`ledger-sizer drifts adopt`, `ignore` and `close` for many drifts at once."""

from typing import TYPE_CHECKING, Any

from ledger_sizer.cli import errors, options, output
from ledger_sizer.cli.drifts import cents
from ledger_sizer.cli.output import Cell, Column

if TYPE_CHECKING:
    from ledger_sizer.model.drift_outcomes import DriftOutcome, DriftOutcomes
    from ledger_sizer.reconcile.listings import DriftChoice

_DONE = {"adopt": "adopted", "ignore": "ignored", "close": "asked to be closed"}


def decide_many(
    action: str,
    numbers: list[str] | None,
    chosen: "DriftChoice",
    portfolio: str | None,
    *,
    every: bool,
    reason: str,
    dry_run: bool,
    as_json: bool,
    url: str | None,
    **more: Any,
) -> int:
    """Decide about the numbered drifts, or with `every` about all that match. Returns the exit code.

    more: see `Operator.act_all`.
    """
    from ledger_sizer.cli.ledger_session import engine_at, ledger_at
    from ledger_sizer.reconcile import listings
    from ledger_sizer.reconcile.operator import Operator
    from ledger_sizer.wire.reconciliation import outcomes_to_json

    filtered = portfolio is not None or chosen != listings.DriftChoice()
    if bool(numbers) == every:
        errors.bad_input("name the drifts, such as 7 8 9, or give --all, with filters such as --kind", "drift")
    if numbers and filtered:
        errors.bad_input("filters such as --kind are for --all; with numbers every drift is named", "drift")
    ids = [options.whole_number(one, "drift", least=1) for one in numbers or ()]
    with ledger_at(url) as ledger, engine_at(url) as engine:
        if every:
            ids = listings.drifts_to_decide(engine, action, chosen, None if portfolio is None else [portfolio])
        if not ids:
            return _show(action, None, dry_run, as_json)
        with output.progress_bar("drifts", total=len(ids), as_json=as_json) as tell:
            outcomes = Operator(ledger, engine).act_all(
                action, ids, reason=reason, dry_run=dry_run, **more,
                progress=None if tell is None else lambda done, total: tell("drifts", done, total),
            )  # fmt: skip
    if as_json:
        output.write_json(outcomes_to_json(outcomes))
    else:
        _show(action, outcomes, dry_run, as_json)
    return errors.FAILED if outcomes.refused else errors.DONE


def _show(action: str, outcomes: "DriftOutcomes | None", dry_run: bool, as_json: bool) -> int:
    from ledger_sizer.model.drift_words import usd_text

    if outcomes is None:
        if as_json:
            output.write_json({"items": [], "refused": 0, "usd": "0"})
        else:
            output.write("no drifts match")
        return errors.DONE
    decided = len(outcomes.items) - outcomes.refused
    words = f"would be {_DONE[action]}" if dry_run else _DONE[action]
    refused = f", {outcomes.refused:,} refused" if outcomes.refused else ""
    text = f"{output.count(decided, 'drift')} {words}, {usd_text(outcomes.usd)} USD{refused}"
    output.headline(text, "denied" if outcomes.refused else "ok")
    titles = ("drift", "outcome", "kind", "where")
    output.table(
        [*map(Column, titles), Column("usd", usd=True), Column("what", priority=20)],
        [_row(one) for one in outcomes.items],
        empty="",
    )
    return errors.DONE


def _row(one: "DriftOutcome") -> tuple[int, str, str | None, str | None, Cell, str]:
    drift = one.drift
    where = None if drift is None else drift.where
    return one.drift_id, one.outcome, None if drift is None else drift.kind, where, cents(one.usd), one.words
