"""The settings that decisions depend on, as one frozen value that their traces quote."""

import json
from dataclasses import dataclass

from ledger_sizer.config import AppSettings
from ledger_sizer.model.units import decimal_text, usd_floor_e8
from ledger_sizer.rules.sizing import SizingPolicy


@dataclass(frozen=True, slots=True)
class Policy:
    """Sizing figures, the cap of a new portfolio (1e-8 USD), the default TTL of a hold (microseconds).

    text: the sizing figures as canonical JSON, quoted in every reservation's trace.
    required_tags: names of the tags that every new position needs. declared: whether only the cap of its whole begins a
    portfolio (see `rules.guards`).
    """

    sizing: SizingPolicy
    new_portfolio_cap_e8: int
    hold_ttl_us: int
    text: str
    required_tags: tuple[str, ...] = ()
    declared: bool = False

    @classmethod
    def of(cls, settings: AppSettings) -> "Policy":
        """Build the policy from the settings."""
        sizing = SizingPolicy.of(settings.sizing, settings.trading.max_position_size_usd)
        text = json.dumps(
            {
                "enabled": sizing.enabled,
                "max_allocation_fraction": decimal_text(sizing.max_fraction),
                "max_position_size_usd": decimal_text(sizing.max_position_size_usd),
                "min_allocation_fraction": decimal_text(sizing.min_fraction),
            },
            separators=(",", ":"),
        )
        return cls(
            sizing=sizing,
            new_portfolio_cap_e8=usd_floor_e8(settings.sizing.max_portfolio_exposure, "max_portfolio_exposure"),
            hold_ttl_us=settings.ledger.hold_ttl_seconds * 1_000_000,
            text=text,
            required_tags=settings.ledger.required_tags,
            declared=settings.ledger.portfolios == "declared",
        )
