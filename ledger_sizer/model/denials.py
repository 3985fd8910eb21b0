"""The reasons of a denial, in order of precedence, and in words: where several apply, the first is reported.

Imports nothing.
"""

GROUP_DENIED = "group_denied"

DENIALS = {
    "halted": ("New reservations are halted", "new reservations are halted in {binding}"),
    "reducing": (
        "Positions may close, none may open",
        "{binding} is reducing: positions may close, none may open",
    ),
    "unreconciled": (
        "The ledger and the exchange do not agree",
        "{binding} is not known to agree with the exchange, so nothing new is granted there",
    ),
    "cap_exceeded": ("The cap leaves too little", "{binding} leaves too little"),
    "below_min_qty": (
        "What is left buys less than the smallest quantity",
        "what {binding} leaves buys less than the smallest quantity that every leg accepts",
    ),
    "below_min_notional": (
        "What is left is below the smallest order value",
        "what {binding} leaves is below the smallest order value",
    ),
    "insufficient_balance": (
        "There is no available balance to spend",
        "there is no available balance to spend",
    ),
    GROUP_DENIED: (
        "Another command of the atomic group was denied",
        "another command of its atomic group was denied: {binding}",
    ),
}
"""By reason: the title of its problem over HTTP, and the end of a sentence about a decision (`binding`: its own)."""

DENIAL_REASONS = tuple(DENIALS)

PRECEDENCE = {reason: place for place, reason in enumerate(DENIALS)}
"""Place of a reason in the order: the lowest is reported."""

DESK_BINDING = "desk"
"""The `binding` of a denial for the desk's own status. No scope can have this name."""

GUARANTEE = "guarantee:"
"""Begins the name of the bound that a guarantee sets to others: `guarantee:bot=a`."""

FREE_BALANCE = "free_balance"
"""The name of the bound that the free balance of exchange accounts sets."""

MAX_POSITION = "max_position_usd:"
"""Begins the name of the bound that a scope sets to one position: `max_position_usd:bot=a`."""


def reason_words(reason: str, binding: str | None, frozen_note: str | None = None) -> str:
    """Return a denial's reason as the end of a sentence that names what bound it, and why that is frozen."""
    _, words = DENIALS.get(reason, ("", reason))
    if frozen_note is not None:
        words = f"{words}: {frozen_note.replace('{', '(').replace('}', ')')}"
    if reason == GROUP_DENIED:
        # Decisions of earlier versions name no neighbour.
        return words.format(binding=repr(binding)) if binding is not None else words.partition(":")[0]
    if binding == DESK_BINDING:
        return words.format(binding="the desk")
    if (reason, binding) == ("insufficient_balance", FREE_BALANCE):
        return "nothing is free in the exchange account that is not promised already"
    return words.format(binding=bound_words(binding) if reason == "cap_exceeded" else _constraint_words(binding))


def bound_words(binding: str | None) -> str:
    """Return a cap, a guarantee or a maximum that bound a request, in words. binding: of its decision."""
    found = _constraint_words(binding)
    return f"the cap of {binding}" if found == binding else found


def _constraint_words(binding: str | None) -> str:
    """Return what bound a request, in words where its name alone does not tell."""
    if binding is None:
        return "what bound it"
    if binding == FREE_BALANCE:
        return "the free balance of the exchange account, less what is promised of it,"
    if binding.startswith(GUARANTEE):
        return f"the portfolio's cap, less what is kept for others (most of it for {binding.removeprefix(GUARANTEE)}),"
    if binding.startswith(MAX_POSITION):
        return f"the largest position that {binding.removeprefix(MAX_POSITION)} allows"
    return binding
