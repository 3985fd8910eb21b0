"""Policies of assets that persons decided: stored and read. Those of settings stand beside them."""

from collections.abc import Iterable

from sqlalchemy import Engine

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.asset_policies import AssetPolicies, AssetRule


def read_decided(engine: Engine, portfolio: str) -> list[AssetRule]:
    """Return the policies that were decided for a portfolio."""
    return []


def effective_policies(settings: ReconcileSettings, decided: Iterable[AssetRule]) -> AssetPolicies:
    """Return the policies that hold: those decided, else those of the settings."""
    return AssetPolicies(settings.assets, decided, settings.quote_assets)
