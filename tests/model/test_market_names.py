"""Names of markets: any script, ccxt's symbols, and the factor of a multiplied coin."""

import re

import pytest
from pydantic import BaseModel, Field, ValidationError

from ledger_sizer import InvalidRequest
from ledger_sizer.model.market_names import (
    NAME_PATTERN,
    coins_of_symbol,
    instrument_name,
    parse_symbol,
    split_factor,
)

GOOD_NAMES = [
    "binance:BTC/USDT", "bybit:BTC/USDT:USDT", "binance:BTC/USDT:USDT-251226", "binance:币安人生/USDT",
    "gate:ДОЖ/USDT:USDT", "mexc:$WIF/USDT", "hyperliquid:XYZ-TSLA/USDC:USDC", "gate:кот\u0308/USDT",
    "x:" + "a" * 64, "okx:BTC-USDT-SWAP",
]  # fmt: skip
BAD_NAMES = [
    "", "binance", "binance:", ":BTC/USDT", "Binance:BTC/USDT", "binance:BTC /USDT", "binance:BTC/USDT ",
    " binance:BTC/USDT", "binance:BTC/USDT\n", "binance:BTC\t/USDT", "binance:BTC\u00a0/USDT", "binance:BTC\u3000/USDT",
    "binance:BTC\x1f/USDT", "binance:BTC\x7f/USDT", "binance:BTC\x85/USDT", "binance:\u2028BTC", "x:" + "a" * 65,
    "a" * 33 + ":BTC/USDT", "币安:BTC/USDT",
]  # fmt: skip


class Body(BaseModel):
    name: str = Field(pattern=NAME_PATTERN)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_name_when_it_is_printable_without_spaces_then_it_is_accepted_by_every_reader(name: str) -> None:
    assert instrument_name(name, "spot_instrument") == name
    assert re.fullmatch(NAME_PATTERN, name)
    assert Body(name=name).name == name


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_when_it_has_spaces_or_controls_then_every_reader_refuses_it(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"must be an InstrumentInfo or a name such as bybit:BTC/USDT") as caught:
        instrument_name(name, "spot_instrument")
    assert caught.value.field == "spot_instrument"
    with pytest.raises(ValidationError):
        Body(name=name)


@pytest.mark.parametrize("name", ["binance:A\u200bB/USDT", "binance:\ufeffBTC/USDT", "binance:\ue000/USDT", "x:\ud800"])
def test_name_when_it_has_invisible_characters_then_the_ledger_refuses_it(name: str) -> None:
    with pytest.raises(InvalidRequest):
        instrument_name(name, "spot_instrument")


@pytest.mark.parametrize(
    ("symbol", "said"),
    [
        ("BTC/USDT", ("spot", "BTC", "USDT", None)),
        ("BTC/USDT:USDT", ("swap", "BTC", "USDT", "USDT")),
        ("BTC/USD:BTC", ("swap", "BTC", "USD", "BTC")),
        ("BTC/USDT:USDT-251226", ("future", "BTC", "USDT", "USDT")),
        ("币安人生/USDT", ("spot", "币安人生", "USDT", None)),
        ("XYZ-TSLA/USDC:USDC", ("swap", "XYZ-TSLA", "USDC", "USDC")),
        ("1000PEPE/USDT:USDT", ("swap", "1000PEPE", "USDT", "USDT")),
        ("BTC/USD:BTC-251226-50000-C", None),
        ("BTC/USDT:USDT-25122", None),
        ("BTC-USDT-SWAP", None),
        ("BTCUSDT", None),
        ("BTC / USDT", None),
        ("BTC/USDT:", None),
        ("/USDT", None),
        ("A/B/C", None),
    ],
)
def test_parse_symbol_when_it_is_of_ccxts_form_then_it_says_kind_and_assets(
    symbol: str, said: tuple[str, str, str, str | None] | None
) -> None:
    assert parse_symbol(symbol) == said


MULTIPLIED = {
    "1000PEPE": (1000, "PEPE"), "1000SHIB": (1000, "SHIB"), "1000SATS": (1000, "SATS"),
    "1000CHEEMS": (1000, "CHEEMS"), "1000X": (1000, "X"),
    "1000CAT": (1000, "CAT"), "10000LADYS": (10_000, "LADYS"), "10000000AIDOGE": (10_000_000, "AIDOGE"),
    "1000000MOG": (1_000_000, "MOG"), "1000000BOB": (1_000_000, "BOB"), "1MBABYDOGE": (1_000_000, "BABYDOGE"),
    "1KSHIB": (1000, "SHIB"), "kPEPE": (1000, "PEPE"), "kBONK": (1000, "BONK"), "SHIB1000": (1000, "SHIB"),
}  # fmt: skip
BINANCE_MULTIPLIED = [
    "1000000BOB", "1000000MOG", "1000BONK", "1000CAT", "1000CHEEMS", "1000FLOKI", "1000LUNC", "1000PEPE", "1000RATS",
    "1000SATS", "1000SHIB", "1000WHY", "1000X", "1000XEC", "1MBABYDOGE",
]  # fmt: skip
BINANCE_COINS = [
    "0G", "1INCH", "2Z", "4", "42", "A2Z", "AI16Z", "API3", "B2", "B3", "BANANAS31", "BROCCOLI714", "BROCCOLIF3B",
    "C98", "LUNA2", "PORT3", "币安人生",
]  # fmt: skip
"""Bases with digits, and of other scripts, of Binance's contracts in November 2025. Of 15 multiplied bases there are 18
contracts: BONK, PEPE and SHIB are quoted in USDC too."""
PLAIN = [
    "BTC", "1INCH", "1MIL", "1KX", "1CAT", "10SET", "100X", "KAVA", "KSM", "k", "kP", "1000", "1000000", "1M",
    "SPX6900", "X1000", "NAS100", "US500", "RUSSELL2000", "BTC2", "2Z", "4", "0G", "100000", "币安人生", "1000_X",
    "ETH2X", "kava", "10002X",
]  # fmt: skip


@pytest.mark.parametrize("base", MULTIPLIED)
def test_split_factor_when_the_name_counts_many_coins_then_factor_and_coin(base: str) -> None:
    assert split_factor(base) == MULTIPLIED[base]


@pytest.mark.parametrize("base", PLAIN)
def test_split_factor_when_the_name_is_a_coins_own_then_one(base: str) -> None:
    assert split_factor(base) == (1, base)


def test_split_factor_when_it_reads_the_bases_of_binance_then_it_finds_exactly_the_multiplied_ones() -> None:
    found = [base for base in (*BINANCE_MULTIPLIED, *BINANCE_COINS) if split_factor(base)[0] != 1]
    assert found == BINANCE_MULTIPLIED


def test_coins_of_symbol_when_it_is_no_symbol_of_ccxt_then_no_coin_is_said() -> None:
    assert coins_of_symbol("1000PEPE/USDT:USDT") == (1000, "PEPE")
    assert coins_of_symbol("BTC/USDT") == (1, "BTC")
    assert coins_of_symbol("1000PEPE-USDT-SWAP") == (1, None)
