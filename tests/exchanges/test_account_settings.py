"""Settings of an account: every exchange of ccxt can be configured, and what cannot work is refused at the start."""

from __future__ import annotations

import json
from typing import Any

import ccxt
import pytest

from ledger_sizer.config import AppSettings, ExchangeSettings
from ledger_sizer.exchanges.client import make_client
from ledger_sizer.exchanges.requirements import require_usable
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.exchange_account import CREDENTIALS, ExchangeAccountSettings
from ledger_sizer.reconcile.worker_process import WorkerInspector

SETTING_OF = {ccxt_name: name for name, ccxt_name in CREDENTIALS.items()}
READ_WITH_LESS = {"extended", "hyperliquid", "nado"}


def settings_of(exchange: str, **values: Any) -> ExchangeAccountSettings:
    return ExchangeAccountSettings(id=exchange, **values)


def required_by_ccxt(exchange: str) -> dict[str, str]:
    asked = getattr(ccxt, exchange)().requiredCredentials
    return {SETTING_OF[name]: f"my-{name}" for name, required in asked.items() if required}


def test_make_client_when_an_account_has_what_ccxt_requires_then_every_exchange_takes_it() -> None:
    assert set(ccxt.Exchange().requiredCredentials) == set(CREDENTIALS.values())
    for exchange in ccxt.exchanges:
        given = required_by_ccxt(exchange) or {"wallet_address": "my-walletAddress"}
        client = make_client(settings_of(exchange, **given))
        assert client.check_required_credentials(), exchange
        assert {name: getattr(client, CREDENTIALS[name]) for name in given} == given


def test_require_usable_when_one_credential_is_missing_then_it_is_named_for_every_exchange() -> None:
    for exchange in sorted(set(ccxt.exchanges) - READ_WITH_LESS):
        given = required_by_ccxt(exchange)
        for left_out in given if len(given) > 1 else ():
            rest = {name: value for name, value in given.items() if name != left_out}
            with pytest.raises(InvalidRequest, match=rf"{exchange} account 'main' also needs {left_out} \(env") as told:
                require_usable(settings_of(exchange, **rest))
            assert told.value.field == left_out
            assert "my-" not in str(told.value)


@pytest.mark.parametrize("exchange", ["hyperliquid", "dydx", "lighter", "nado", "pacifica"])
def test_make_client_when_an_address_reads_the_account_then_no_private_key_is_asked_for(exchange: str) -> None:
    assert make_client(settings_of(exchange, wallet_address="0xabc")).walletAddress == "0xabc"
    with pytest.raises(InvalidRequest, match="also needs wallet_address"):
        require_usable(settings_of(exchange, uid="1"))


def test_open_worker_when_a_credential_is_missing_then_the_service_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXCHANGE_ID", "woofipro")
    monkeypatch.setenv("EXCHANGE_API_KEY", "k")
    with pytest.raises(
        InvalidRequest, match=r"api_secret and account_id .*EXCHANGE_API_SECRET and EXCHANGE_ACCOUNT_ID"
    ):
        WorkerInspector("sqlite:///x", AppSettings())


OPTIONS = {
    "portfolioMargin": True, "recvWindow": 10_000, "hostname": "bytick.com", "rateLimit": 500,
    "httpsProxy": "http://user:a-secret-of-the-proxy@127.0.0.1:9", "options": {"defaultType": "swap"},
}  # fmt: skip


def test_make_client_when_options_are_given_then_ccxt_has_each_where_it_reads_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EXCHANGE_OPTIONS", json.dumps(OPTIONS))
    settings = ExchangeSettings()
    client = make_client(settings.flat())
    assert (client.hostname, client.rateLimit) == ("bytick.com", 500)
    assert client.httpsProxy == OPTIONS["httpsProxy"]
    assert client.options["portfolioMargin"] is True
    assert client.options["recvWindow"] == 10_000
    assert client.options["defaultType"] == "swap"
    assert client.enableRateLimit
    assert client.number is str
    assert "a-secret" not in repr(settings)
    assert settings.without_secrets(f"no way to {OPTIONS['httpsProxy']}, swap") == "no way to ***, swap"


def test_make_client_when_sandbox_is_asked_for_then_calls_go_there() -> None:
    assert "testnet" in make_client(settings_of("bybit", options={"sandbox": True})).urls["api"]["private"]
    with pytest.raises(InvalidRequest, match=r"EXCHANGE_OPTIONS: ccxt knows no sandbox of kraken"):
        make_client(settings_of("kraken", options={"sandbox": True}))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ('{"enableRateLimit": false}', "may not set enableRateLimit: the exchange's rate limit is always kept"),
        ('{"number": "float"}', "may not set number: numbers are always read exactly"),
        ('{"options": {"maxRetriesOnFailure": 9}}', "may not set maxRetriesOnFailure: set EXCHANGE_RETRIES_MAX"),
        ('{"apiKey": "hush"}', "may not set apiKey: set EXCHANGE_API_KEY"),
        ('{"verbose": true}', "may not set verbose: it would write credentials"),
        ('{"precisionMode": 2}', "may not set precisionMode, which is no option"),
        ('{"rateLimit": 0}', "rateLimit must be milliseconds"),
        ('["hush"]', r"EXCHANGE_OPTIONS\): must be a JSON object"),
        ('{"hush', r"EXCHANGE_OPTIONS\): must be a JSON object"),
    ],
)
def test_make_client_when_an_option_cannot_work_then_it_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, options: str, told: str
) -> None:
    monkeypatch.setenv("EXCHANGE_OPTIONS", options)
    with pytest.raises(InvalidRequest, match=told) as refused:
        make_client(ExchangeSettings().flat())
    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(CREDENTIALS))
def test_read_settings_when_a_credential_is_given_then_it_makes_an_account_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"EXCHANGE_{name.upper()}", "hush-hush")
    settings = AppSettings()
    assert [account.given for account in settings.exchange.every()] == [{name: "hush-hush"}]
    assert "hush" not in repr(settings)
    assert settings.exchange.without_secrets("key hush-hush refused") == "key *** refused"
