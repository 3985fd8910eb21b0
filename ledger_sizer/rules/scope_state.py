"""One scope in memory: what it is set to and what it counts."""

from dataclasses import dataclass

from ledger_sizer.model.choices import Status
from ledger_sizer.model.scope_settings import NO_SETTINGS, ScopeSettings
from ledger_sizer.model.tags import is_default_scope


@dataclass(slots=True)
class ScopeState:
    """A scope's settings and counters, in 1e-8 USD. stored: (held, open) in the database, None if it has no row."""

    name: str
    settings: ScopeSettings = NO_SETTINGS
    held_e8: int = 0
    open_e8: int = 0
    stored: tuple[int, int] | None = None

    def copy(self) -> "ScopeState":
        """Return an independent copy."""
        return ScopeState(self.name, self.settings, self.held_e8, self.open_e8, self.stored)

    @property
    def cap_e8(self) -> int | None:
        """Its cap, None without one."""
        return self.settings.cap_e8

    @property
    def status(self) -> Status:
        """`active`, `reducing` or `halted`."""
        return self.settings.status

    @property
    def exposure_e8(self) -> int:
        """held + open."""
        return self.held_e8 + self.open_e8

    @property
    def headroom_e8(self) -> int | None:
        """cap - exposure; below zero when facts exceeded the cap; None without a cap."""
        cap_e8 = self.settings.cap_e8
        return None if cap_e8 is None else cap_e8 - self.held_e8 - self.open_e8

    @property
    def overage_e8(self) -> int:
        """Exposure above the cap."""
        cap_e8 = self.settings.cap_e8
        return 0 if cap_e8 is None else max(self.held_e8 + self.open_e8 - cap_e8, 0)

    @property
    def kept_e8(self) -> int:
        """What requests outside of it must leave for it: the part of its guarantee that it does not use."""
        return max((self.settings.guarantee_e8 or 0) - self.held_e8 - self.open_e8, 0)

    @property
    def shared(self) -> bool:
        """Whether requests outside of it depend on it: it has a guarantee, or is a default cap or an account."""
        settings = self.settings
        return settings.guarantee_e8 is not None or settings.since_seq is not None or is_default_scope(self.name)

    def unreconciled(self, now_us: int) -> bool:
        """Return True if it differs from the exchange, or is no longer known to agree with it."""
        fresh_until_us = self.settings.fresh_until_us
        return self.settings.frozen or (fresh_until_us is not None and now_us >= fresh_until_us)
