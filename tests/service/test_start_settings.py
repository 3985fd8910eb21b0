"""A start is refused where the settings ask for what they cannot have."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from ledger_sizer import ExchangeSettings, InvalidRequest, ReconcileSettings
from ledger_sizer.service.bootstrap import running_components
from tests.support.services import settings_for


@pytest.mark.parametrize(
    ("reconcile", "variable", "cure"),
    [
        ({"enabled": True}, "RECONCILE_ENABLED", "EXCHANGE_API_KEY"),
        ({"webhook_heads": True}, "RECONCILE_WEBHOOK_HEADS", "RECONCILE_WEBHOOK_URL"),
    ],
)
def test_start_when_it_asks_for_what_it_cannot_have_then_it_is_refused_with_the_cure(
    database_url: str, reconcile: dict[str, Any], variable: str, cure: str
) -> None:
    settings = settings_for(database_url, sections={"reconcile": ReconcileSettings(**reconcile)})
    with pytest.raises(InvalidRequest, match=variable) as refused, running_components(settings, with_jobs=False):
        pass
    assert cure in str(refused.value)


def test_start_when_a_baseline_is_of_no_account_then_it_is_refused_with_the_accounts(
    database_url: str,
) -> None:
    sections = {
        "reconcile": ReconcileSettings(enabled=True, baselines={"bybit/mian/BTC": Decimal(1)}),
        "exchange": ExchangeSettings(api_key=SecretStr("key"), api_secret=SecretStr("secret")),
    }
    settings = settings_for(database_url, sections=sections)
    with pytest.raises(InvalidRequest, match="bybit/mian/BTC") as refused, running_components(settings):
        pass
    assert "the accounts are bybit/main" in str(refused.value)


def test_start_when_an_account_has_a_key_then_it_reconciles(database_url: str) -> None:
    sections = {
        "reconcile": ReconcileSettings(
            enabled=True,
            webhook_heads=True,
            webhook_url=SecretStr("http://127.0.0.1:9/"),
            baselines={"bybit/main/BTC": Decimal(1)},
        ),
        "exchange": ExchangeSettings(api_key=SecretStr("key"), api_secret=SecretStr("secret")),
    }
    with running_components(settings_for(database_url, sections=sections), with_jobs=False) as parts:
        assert parts.reconciler.portfolios == ["main"]
