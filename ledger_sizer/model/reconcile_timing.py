"""The times of the reconciliation, and which of them cannot work together."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Self


class ReconcileTiming(NamedTuple):
    """See `ReconcileSettings`. Whole seconds; stale_after: None where trust does not end."""

    interval: int
    confirmations: int
    stale_after: int | None
    warning: int | None
    grace: int
    expired: int

    @classmethod
    def of(cls, settings: Any) -> Self:
        """Return the times of the `ReconcileSettings`."""
        return cls(
            settings.interval_seconds, settings.confirmations, settings.stale_after_seconds,
            settings.trust_warning_seconds, settings.grace_seconds, settings.expired_seconds,
        )  # fmt: skip

    @property
    def warns_at(self) -> int:
        """Trust left, in seconds, at which its end is announced; 0: not announced, or it does not end.

        By default a third of the whole. Where runs are so far apart that less than twice that is left before each of
        them, it is half of what is left: a warning says that runs are missing.
        """
        if self.stale_after is None:
            return 0
        if self.warning is not None:
            return self.warning
        return max(min(self.stale_after // 3, (self.stale_after - self.interval) // 2), 1)

    def problems(self) -> Iterator[str]:
        """Yield what cannot work, each with its cure."""
        if self.stale_after is not None:
            yield from self._problems_of_trust(self.stale_after)
        elif self.warning:
            yield (
                f"trust_warning_seconds {self.warning} announces the end of trust, which has none while "
                "stale_after_seconds is empty; set RECONCILE_STALE_AFTER_SECONDS, or leave the warning out"
            )
        told_after = self.grace + (self.confirmations - 1) * self.interval
        if told_after >= self.expired:
            yield (
                f"a late fill would be confirmed after {told_after} s (grace_seconds {self.grace} + "
                f"{self.confirmations - 1} x interval_seconds {self.interval}), when the hold that explains it is no "
                f"longer looked for (expired_seconds {self.expired}): it would always be an unknown position; set "
                "RECONCILE_EXPIRED_SECONDS above that, or fewer RECONCILE_CONFIRMATIONS"
            )

    def _problems_of_trust(self, stale_after: int) -> Iterator[str]:
        if self.interval >= stale_after:
            yield (
                f"interval_seconds {self.interval} is not below stale_after_seconds {stale_after}: trust would end "
                "before the next run, and every reservation be denied until it is done; set "
                "RECONCILE_INTERVAL_SECONDS below it, or RECONCILE_STALE_AFTER_SECONDS above it"
            )
        elif self.warning is not None and self.warning >= stale_after - self.interval:
            yield (
                f"trust_warning_seconds {self.warning} would announce the end of trust before every run: of "
                f"stale_after_seconds {stale_after} only {stale_after - self.interval} are left when a run begins "
                f"(interval_seconds {self.interval}); set RECONCILE_TRUST_WARNING_SECONDS below that"
            )
        if self.grace >= stale_after:
            yield (
                f"grace_seconds {self.grace} is not below stale_after_seconds {stale_after}: a market that is traded "
                "once in that time would be granted on and never judged; set RECONCILE_GRACE_SECONDS to what an "
                "exchange takes to show a fill, or RECONCILE_STALE_AFTER_SECONDS above it"
            )
