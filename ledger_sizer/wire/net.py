"""Converts nets of coins to JSON and back."""

from ledger_sizer.model.net import Net, NetAsset, NetPlace
from ledger_sizer.wire.codec import Codec, us_of

_PLACE_DOCS = {
    "account": "Empty where the ledger does not know it.",
    "bought": "Coins filled and open in the ledger.",
    "external": "The part of the net that only the exchange showed.",
    "shown": "The net that the last run saw; null where it did not see this account whole.",
}
_DOCS = {
    "asset": "The coin; empty for positions that name none.",
    "external": "The part of the net that only the exchange showed.",
    "without_legs": "Coins of positions without legs, whose side is not known; in no other figure.",
    "price": "Average entry price of the side that the net is on, USD per coin.",
    "exchange_price": "The last that the reconciliation saw.",
    "shown": "The net that the last run saw; null where it did not see every account of the coin.",
    "hedged": "Within TRADING_DELTA_DRIFT_TOLERANCE, in the ledger and as the last run saw it.",
    "naked_usd": "USD that are not hedged, without a sign.",
    "naked_since": "The last fill or close since which its sides differ.",
}

PLACE = Codec(NetPlace, "venue account bought sold net external shown shown_long shown_short", _PLACE_DOCS)
ASSET = Codec(
    NetAsset,
    "asset bought sold net net_usd external without_legs price exchange_price exchange_usd shown hedged naked_usd"
    " naked_since accounts",
    _DOCS,
    read={"naked_us": lambda form: None if form["naked_since"] is None else us_of(form["naked_since"])},
)
NET = Codec(
    Net, "portfolio run_at naked_usd assets",
    {"run_at": "When the run began whose sight is shown; null without one.", "assets": "Naked ones first."},
    read={"run_us": lambda form: None if form["run_at"] is None else us_of(form["run_at"])},
)  # fmt: skip
net_to_json, net_from_json = NET.to_json, NET.from_json
