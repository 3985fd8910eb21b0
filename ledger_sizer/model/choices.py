"""Words of choice: states, outcomes and kinds. Each stands once, and here. Imports only typing: `--help` reads them."""

from typing import Literal, get_args

Outcome = Literal["granted", "denied", "applied"]
PositionState = Literal["held", "open", "closed", "released", "expired"]
PositionFilter = Literal[PositionState, "live", "until_known"]
"""`live`: held or open. `until_known`: live, with a hold that never ends by time."""
Status = Literal["active", "reducing", "halted"]
HaltMode = Literal["halted", "reducing"]
MarketKind = Literal["spot", "swap", "future"]
"""`swap`: a perpetual contract. `future`: a contract with a date of delivery."""
Rest = Literal["free", "hold"]
"""What becomes of the rest of a hold when a part of it fills."""
OnUnknown = Literal["keep", "release"]
"""What becomes of a hold where a failed block leaves the fate of an order unknown."""
Side = Literal["buy", "sell"]
Role = Literal["read", "trade", "admin"]
"""In ascending order: each role may do what the ones before it may; `admin` may do everything."""
ExportForm = Literal["csv", "ndjson"]
LedgerCreation = Literal["new", "never", "always"]
"""When a SQLite ledger that is not there is created. `new`: where none was before. `always`: even where one was."""
PortfolioCreation = Literal["create", "declared"]
"""What begins a portfolio. `create`: its first reservation, adoption or cap. `declared`: only the cap of its whole."""

DriftKind = Literal[
    "fetch_failed", "quantity_differs", "unknown_position", "missing_position", "side_flipped", "legs_unequal",
    "balance_below_holds", "late_fill", "expired_hold", "unreadable", "interest",
]  # fmt: skip
"""Kinds of difference between ledger and exchange; docs/reconciliation.md explains each."""
DriftPolicy = Literal["record", "alert", "freeze", "adopt", "close"]
"""What happens to a confirmed drift. `record` only lists it. All others send alerts too; in addition `freeze` stops new
reservations, `adopt` makes it a position of the ledger, and `close` asks the orchestrator to close it."""
AssetPolicy = Literal["position", "cash", "fees", "ignore"]
"""Whose money a spot balance is. `position`: the bots', compared with the ledger. `cash`: money that positions are paid
with. `fees`: a stock that fees are paid from. `ignore`: not looked at. Of the last two, what the ledger itself holds
must be there, and nothing else is asked."""
DriftState = Literal["open", "confirmed", "acknowledged", "resolved"]
"""`open`: seen, but in too few runs so far. `confirmed`: seen in enough runs. `acknowledged`: a person accepted it as
it is. `resolved`: gone, or adopted."""
DriftFilter = Literal[DriftState, "live"]
"""`live`: open or confirmed."""
Trigger = Literal["start", "interval", "demand"]
RunOutcome = Literal["good", "partial", "failed"]

POSITION_STATES: tuple[PositionState, ...] = get_args(PositionState)
ROLES: tuple[Role, ...] = get_args(Role)
DRIFT_KINDS: tuple[DriftKind, ...] = get_args(DriftKind)
DRIFT_POLICIES: tuple[DriftPolicy, ...] = get_args(DriftPolicy)
ASSET_POLICIES: tuple[AssetPolicy, ...] = get_args(AssetPolicy)
DRIFT_STATES: tuple[DriftState, ...] = get_args(DriftState)
