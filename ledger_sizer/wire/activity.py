"""Converts what happened in an account, and what it explains, to JSON and back."""

from ledger_sizer.model.account_activity import AccountEvent, DriftActivity
from ledger_sizer.wire.codec import Codec

ACCOUNT_EVENT = Codec(
    AccountEvent,
    "kind happened_at side subject quantity price id order fee fee_asset detail elsewhere",
    {
        "subject": "A market, or an asset.",
        "quantity": "Coins, above 0; of a funding payment units of its asset.",
        "price": "USD per coin.",
        "order": "The exchange's id of the order.",
        "elsewhere": "It happened in a wallet that is not compared with the ledger.",
    },
)

DRIFT_ACTIVITY = Codec(
    DriftActivity,
    "drift_id since until difference told unexplained text events problems",
    {
        "since": "When the last good run before the drift began, a week at most.",
        "until": "When the drift was last measured.",
        "difference": "Coins at the exchange beyond the ledger; sold below 0.",
        "told": "The part of the events that bots told the ledger.",
        "unexplained": "What the other events do not explain; null where nothing can be said.",
        "text": "The explanation.",
        "problems": "What the exchange did not tell, and why.",
    },
)
drift_activity_to_json, drift_activity_from_json = DRIFT_ACTIVITY.to_json, DRIFT_ACTIVITY.from_json
