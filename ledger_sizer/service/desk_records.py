"""Records in the desk's chain what is of no portfolio: API keys made and revoked, the settings of a start."""

import json
import secrets
import threading
from collections.abc import Callable

from ledger_sizer import __version__
from ledger_sizer.config import AppSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.caller import SYSTEM, Caller, calling_as
from ledger_sizer.model.commands import Remark
from ledger_sizer.model.details import DETAIL_LENGTH_MAX
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.model.names import DESK
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.telemetry import get_logger

log = get_logger(__name__)

_KEYS_CLIENT = "keys"
"""Owner of the idempotency keys of these records: whoever tries again finds what another began."""
_START_SECONDS_MAX = 3.0
"""Longest wait of a start for its record. A start never fails for it."""

_SETTINGS = {
    "sizing": "enabled min_allocation_fraction max_allocation_fraction max_portfolio_exposure",
    "trading": "max_position_size_usd delta_drift_tolerance",
    "ledger": "create portfolios required_tags hold_ttl_seconds clock_jump_seconds archive_after_days key_window_days",
    "reconcile": (
        "enabled interval_seconds tolerance dust_usd interest_usd confirmations stale_after_seconds grace_seconds"
        " expired_seconds run_seconds_max freeze_scope quote_assets baselines assets policy_fetch_failed"
        " policy_quantity_differs policy_unknown_position policy_missing_position policy_side_flipped"
        " policy_legs_unequal policy_balance_below_holds policy_late_fill policy_expired_hold policy_unreadable"
        " policy_interest"
    ),
}
"""Settings that decide about money, by section. No secret is among them, and no address."""


def key_recorder(ledger: Ledger) -> Callable[[ApiKey, str], None]:
    """Return what records the making and the revoking of API keys, in the name of the ledger's caller.

    It comes before the change. After a crash in between, a recorded key that was made is in no listing and nobody has
    its token; a recorded revocation is not in force until it is done again, which finds this record.
    """

    def record(key: ApiKey, event: str) -> None:
        portfolios = "all" if key.portfolios is None else ", ".join(key.portfolios)
        # The portfolios last: where the note is cut, more of them are missing in it.
        said = {"name": key.name, "role": key.role, "client": key.caller.client, "portfolios": portfolios}
        details = {"tags": _text(key.tags.text)} if key.tags else None
        with calling_as(Caller(ledger.caller.actor, _KEYS_CLIENT)):
            ledger.run(
                Remark(
                    key=f"key:{key.key_id}:{event}", portfolio=DESK, about=f"key-{key.key_id}", event=event,
                    note=", ".join(f"{name} {text}" for name, text in said.items())[:500], details=details,
                )
            )  # fmt: skip

    return record


def record_start(ledger: Ledger) -> None:
    """Record that a service starts, with the settings in force. Where that fails, or takes long, the start goes on."""
    remark = Remark(
        key=f"service:started:{secrets.token_hex(12)}", portfolio=DESK, about="service", event="started",
        note=f"version {__version__}", details=settings_in_force(ledger.settings),
    )  # fmt: skip

    def record() -> None:
        try:
            with calling_as(SYSTEM):
                ledger.run(remark)
        except LedgerError as error:
            log.warning("service.start_not_recorded", error=str(error))

    recording = threading.Thread(target=record, name="record-start", daemon=True)
    recording.start()
    recording.join(_START_SECONDS_MAX)


def settings_in_force(settings: AppSettings) -> dict[str, str]:
    """Return the settings that decide about money, as details of a remark."""
    found: dict[str, str] = {}
    for section, names in _SETTINGS.items():
        values = getattr(settings, section).model_dump(mode="json", include=set(names.split()))
        found |= {f"{section}.{name}": _text(value) for name, value in values.items()}
    return found


def _text(value: object) -> str:
    text = value if isinstance(value, str) and value else json.dumps(value)
    return text if len(text) <= DETAIL_LENGTH_MAX else f"{text[: DETAIL_LENGTH_MAX - 3]}..."
