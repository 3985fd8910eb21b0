"""The reasons of a denial, in order of precedence: where several apply, the first is reported. Imports nothing."""

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
