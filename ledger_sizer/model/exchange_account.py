"""Settings of one account at one exchange: its names, its credentials, and what ccxt is told beside them."""

import json
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Secret, SecretStr, field_validator
from pydantic_settings import NoDecode

from ledger_sizer.model.names import PORTFOLIO_PATTERN

CREDENTIALS = {
    "api_key": "apiKey",
    "api_secret": "secret",
    "password": "password",
    "uid": "uid",
    "login": "login",
    "account_id": "accountId",
    "wallet_address": "walletAddress",
    "private_key": "privateKey",
    "token": "token",
    "twofa": "twofa",
}
"""ccxt's name of each credential, by the name of its setting."""


def _no_float(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(f"must be a Decimal, int or text, got float {value!r}; write Decimal('0.1'), not 0.1")
    return value


Exact = Annotated[Decimal, BeforeValidator(_no_float)]
"""A Decimal that was never a binary float."""

_SECRET_LENGTH_MIN, _OPTION_LENGTH_MIN = 4, 16
"""Shorter texts are left in messages: no secret is that short, and words such as `swap` are."""


def _options(value: Any) -> Any:
    """Return the object that an environment variable has as JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError("must be a JSON object") from None  # without the text, which may hold a secret
    if isinstance(value, Secret):
        return value
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise ValueError("must be a JSON object")
    inner = value.get("options", {})
    if not isinstance(inner, dict):
        raise ValueError("the name options within it must be a JSON object")
    return Secret({name: found for name, found in value.items() if name != "options"} | inner)


Options = Annotated[Secret[dict[str, Any]], NoDecode, BeforeValidator(_options)]
"""An object of options, shown nowhere. One written as in ccxt's constructor, with `options` inside, is flattened."""


class ExchangeAccountSettings(BaseModel):
    """One account at one exchange. Secrets are never logged."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    id: str = Field("bybit", description="A ccxt exchange id; positions name it in their venue tag.")
    account: str = Field("main", pattern=PORTFOLIO_PATTERN, description="A name for the account.")
    portfolio: str = Field(
        "main", pattern=PORTFOLIO_PATTERN, description="The portfolio whose positions stand in this account."
    )
    api_key: SecretStr | None = Field(None, description="API key with read rights.")
    api_secret: SecretStr | None = Field(None, description="Its secret.")
    password: SecretStr | None = Field(None, description="Its passphrase, where the exchange asks for one (OKX).")
    uid: SecretStr | None = Field(None, description="User id, where the exchange asks for one.")
    login: SecretStr | None = Field(None, description="Login name, where the exchange asks for one (NDAX).")
    account_id: SecretStr | None = Field(None, description="Account id, where the exchange asks for one (WOOFi Pro).")
    wallet_address: SecretStr | None = Field(
        None, description="Wallet address. It alone reads an account at Hyperliquid, dYdX, Pacifica, Nado and Lighter."
    )
    private_key: SecretStr | None = Field(
        None, description="Private key of a wallet, where nothing less reads the account: it can trade, too."
    )
    token: SecretStr | None = Field(None, description="Access token, where the exchange asks for one.")
    twofa: SecretStr | None = Field(None, description="Seed of the second factor, where the exchange asks for it.")
    options: Options = Field(
        Secret({}),
        description='ccxt\'s options, a JSON object such as {"portfolioMargin": true, "recvWindow": 10000}.',
    )
    base_url: str | None = Field(None, description="Another host for every call, such as a local test venue.")
    wallets: tuple[str, ...] = Field(
        (),
        description="Wallets to add up, such as spot and swap; empty: these two at Binance, elsewhere ccxt's choice.",
    )
    bind_free_balance: bool = Field(
        True, description="Bind reservations by what is free in it; off where its coins are collateral too."
    )
    margin_fraction: Exact = Field(
        Decimal(1), ge=0, le=1, description="Fraction of a contract's value that it needs of the free balance."
    )
    timeout_seconds: int = Field(10, ge=1, le=300, description="Longest wait for one answer of the exchange.")
    retries_max: int = Field(2, ge=0, le=10, description="Retries of a call after a network error or a rate limit.")

    @field_validator("base_url")
    @classmethod
    def _http_url(cls, value: str | None) -> str | None:
        if value is not None and not re.match(r"https?://[^/]", value):
            raise ValueError("must start with http:// or https:// and name a host")
        return value

    @property
    def given(self) -> dict[str, str]:
        """The credentials that are set and not empty, by the names of their settings. Never show them."""
        values = {name: getattr(self, name) for name in CREDENTIALS}
        return {name: value.get_secret_value() for name, value in values.items() if value and value.get_secret_value()}

    def without_secrets(self, text: str) -> str:
        """Return the text with this account's credentials, and each long text of its options, made unreadable."""
        secrets = {value for value in self.given.values() if len(value) >= _SECRET_LENGTH_MIN}
        secrets |= {value for value in _texts(self.options.get_secret_value()) if len(value) >= _OPTION_LENGTH_MIN}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
