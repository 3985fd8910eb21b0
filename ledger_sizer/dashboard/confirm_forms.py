"""Builds the forms that confirm an action: a heading, the consequences, and the fields to post."""

import secrets
from dataclasses import dataclass, field

from ledger_sizer.model import drift_words
from ledger_sizer.model.names import DESK
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.model.tags import PORTFOLIO_SCOPE


@dataclass(frozen=True, slots=True)
class ConfirmForm:
    """The form that confirms one action.

    heading, words: the action and its consequences. post_to: the form's URL. back: the URL of `Cancel`. button: its
    label; danger: whether it stops trading. fields: sent along, hidden. modes: radio buttons, as (value, label).
    ask_price: asks for a price in USD per base unit. needs_note: the reason must be given.
    """

    heading: str
    words: str
    post_to: str
    back: str
    button: str
    danger: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    modes: tuple[tuple[str, str], ...] = ()
    ask_price: bool = False
    needs_note: bool = False


def halt_form(portfolio: str, scope: str) -> ConfirmForm:
    """Return the form that halts a scope, or the desk."""
    where = "in any portfolio, those to come too," if portfolio == DESK else "there"
    return ConfirmForm(
        heading=f"Halt {_scope_title(portfolio, scope)}?",
        words=f"No new reservation is granted {where} until it is resumed. Fills, releases and closes always pass.",
        post_to=f"/steer/{portfolio}",
        back=page_of(portfolio),
        button="Halt",
        danger=True,
        fields={"action": "halt", "scope": scope, "key": _new_key()},
        modes=(
            ("halted", "Halt: holds cannot be extended either"),
            ("reducing", "Reduce only: holds may be extended and filled, nothing new opens"),
        ),
    )


def resume_form(portfolio: str, scope: str, status: str) -> ConfirmForm:
    """Return the form that resumes a scope, or the desk, which is in `status` now."""
    rest = "where the portfolio itself is active, up to its cap" if portfolio == DESK else "up to the cap"
    return ConfirmForm(
        heading=f"Resume {_scope_title(portfolio, scope)}?",
        words=f"It is {status} now. From then on reservations are granted again, {rest}.",
        post_to=f"/steer/{portfolio}",
        back=page_of(portfolio),
        button="Resume",
        fields={"action": "resume", "scope": scope, "key": _new_key()},
    )


_DRIFT_CONSEQUENCES = {
    "adopt": "The ledger will say what the exchange shows: what is more there becomes a position of the ledger, "
    "together with what hedges it there, and where it is less the newest positions are released.",
    "ignore": "The difference may stay as it is: it counts no longer and freezes nothing, until it changes.",
    "close": "Those who trade are asked to close it at the exchange. It goes on counting until it is gone there.",
}


def drift_form(drift: Drift, action: str) -> ConfirmForm:
    """Return the form that adopts, ignores or closes a drift.

    It carries no idempotency key: the reconciliation makes one of the drift and its revision.
    """
    difference = drift_words.difference_words(drift)
    words = (
        f"{drift.title}.", drift_words.meaning(drift), f"{drift.detail.rstrip('.')}.",
        f"{difference}." if difference else "", _DRIFT_CONSEQUENCES[action],
    )  # fmt: skip
    return ConfirmForm(
        heading=f"{action.capitalize()} drift {drift.id}?",
        words=" ".join(told for told in words if told),
        post_to=f"/drifts/{drift.id}/{action}",
        back=f"/?portfolio={drift.portfolio}",
        button=action.capitalize(),
        ask_price=action == "adopt" and drift.excess > 0 and drift.price is None,
        needs_note=True,
    )


def page_of(portfolio: str) -> str:
    """Return the URL of the dashboard that shows this portfolio; of the desk, the first one."""
    return "/" if portfolio == DESK else f"/?portfolio={portfolio}"


def _scope_title(portfolio: str, scope: str) -> str:
    if portfolio == DESK:
        return "the desk: all portfolios"
    return portfolio if scope == PORTFOLIO_SCOPE else f"{scope} of {portfolio}"


def _new_key() -> str:
    """Return an idempotency key for the page: sending its form twice acts once."""
    return f"dashboard-{secrets.token_hex(12)}"
