"""Pools on the command line: caps, exposure, and what a denial says."""

from __future__ import annotations

import pytest

from tests.support.command_line import CommandLine

pytestmark = pytest.mark.one_engine


def _words(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


@pytest.fixture
def desk(cli: CommandLine) -> CommandLine:
    """A cap of 3000; bot a has 1500 and positions of at most 300, every venue 1000."""
    cli.json("caps", "set", "main", "3000")
    cli.json("caps", "set", "main", "1000", "--scope", "venue=*")
    cli.json("caps", "set", "main", "--scope", "bot=a", "--guarantee", "1500", "--max-position", "300")
    return cli


def test_set_cap_when_settings_are_given_then_the_headline_tells_each(desk: CommandLine) -> None:
    for line, headline in {
        "2500 --scope bot=a --guarantee none": "2500.00 USD, no guarantee",
        "none --scope bot=a --max-position 250.5": "no cap, largest position 250.50 USD",
        "--scope bot=a --guarantee 100 --max-position none": "guarantee 100.00 USD, no largest position",
    }.items():
        ran = desk("caps", "set", "main", *line.split())
        assert (ran.code, ran.out.splitlines()[0]) == (0, f"set_cap applied: {headline}")
    assert desk("caps", "remove", "main", "--scope", "bot=a").out.startswith("set_cap applied: no cap\n")
    refused = desk("caps", "set", "main", "--scope", "bot=b", "--guarantee", "2900.5", "--json")
    assert (refused.code, refused.problem["field"]) == (2, "guarantee")


def test_list_caps_when_scopes_have_settings_then_each_has_a_row_and_columns_are_those_in_use(
    desk: CommandLine,
) -> None:
    desk.json("reserve", "--tag", "venue=okx", "--tag", "bot=a", "--amount-usd", "250")
    assert _words(desk("caps").out) == [
        ["portfolio", "scope", "cap_USD", "guarantee_USD", "largest_position_USD", "exposure_USD", "headroom_USD",
         "overage_USD", "status"],
        ["main", "portfolio", "3000.00", "-", "-", "250.00", "2750.00", "0.00", "active"],
        ["main", "bot=a", "-", "1500.00", "300.00", "250.00", "-", "0.00", "active"],
        ["main", "venue=*", "1000.00", "-", "-", "0.00", "1000.00", "0.00", "active"],
    ]  # fmt: skip
    desk.json("caps", "set", "main", "--scope", "venue=okx", "--max-position", "7")
    assert _words(desk("caps").out)[-1] == [
        "main", "venue=okx", "1000.00", "venue=*", "-", "7.00", "250.00", "750.00", "0.00", "active",
    ]  # fmt: skip


def test_exposure_when_there_are_pools_then_they_stand_below_the_scopes(desk: CommandLine) -> None:
    desk.json("reserve", "--tag", "venue=okx", "--tag", "bot=a", "--amount-usd", "250")
    scopes, _, pools = desk("exposure").out.partition("\n\n")
    assert _words(scopes)[-1][:4] == ["venue=okx", "1000.00", "venue=*", "250.00"]
    assert _words(pools) == [
        ["pool", "guaranteed_USD", "used_USD", "kept_USD", "lent_out_USD"],
        ["bot=a", "1500.00", "250.00", "1250.00", "0.00"],
        ["left", "to", "who", "is", "in", "no", "pool:", "1500.00", "USD"],
    ]


def test_reserve_when_the_rest_is_kept_for_a_pool_then_the_denial_says_so(desk: CommandLine) -> None:
    for venue in ("okx", "bybit"):
        desk.json("reserve", "--tag", f"venue={venue}", "--amount-usd", "750")
    denied = desk("reserve", "--tag", "venue=gate", "--key", "k")
    assert (denied.code, denied.out.splitlines()[:3]) == (3, [
        "reserve denied: cap_exceeded",
        "bound by  guarantee:bot=a",
        "in words  the portfolio has 1500 USD left and keeps 1500 USD for others (bot=a 1500), which leaves nothing",
    ])  # fmt: skip
