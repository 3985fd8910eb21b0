"""The file of caps: what is written is read again, and every mistake names its place and its cure."""

from __future__ import annotations

from decimal import Decimal

import pytest

from ledger_sizer import InvalidRequest
from ledger_sizer.model.caps import Limits
from ledger_sizer.wire.caps_file import caps_file_text, read_caps_file

D = Decimal
CAPS = {
    "z.9": {"portfolio": Limits(D(0))},
    "main": {
        "portfolio": Limits(D("5000.5"), max_position_usd=D("0.00000001")),
        "venue=*": Limits(D(1000)),
        "bot=a": Limits(D("1E+4"), D(1500), D(300)),
        'bot="b" \\ ☃ = [x] # 1': Limits(guarantee=D(0)),
    },
}


def test_write_caps_file_when_read_again_then_it_is_the_same_and_in_order() -> None:
    text = caps_file_text(CAPS)
    assert read_caps_file(text.encode()) == CAPS
    assert text == caps_file_text(dict(reversed(CAPS.items())))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert lines == [
        "[portfolios.main]", 'cap = "5000.5"', 'max_position_usd = "0.00000001"',
        "[portfolios.main.scopes]", '"bot=\\"b\\" \\\\ ☃ = [x] # 1" = { guarantee = "0" }',
        '"bot=a" = { cap = "10000", guarantee = "1500", max_position_usd = "300" }', '"venue=*" = { cap = "1000" }',
        '[portfolios."z.9"]', 'cap = "0"',
    ]  # fmt: skip
    assert read_caps_file(caps_file_text({}).encode()) == read_caps_file(b"") == {}


SCOPES = '[portfolios.main]\ncap = "9"\n[portfolios.main.scopes]\n'


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("[portfolios.main\ncap = '1'", "file", "at line 1, column 17"),
        ("a = 'x\ny'", "file", "line 1"),
        (b'[portfolios.main]\ncap = "\xff"', "file", "line 2 is not; save it as UTF-8"),
        ("[portfolio.main]\ncap = '1'", "portfolio", "known are portfolios"),
        ("portfolios = 5", "portfolios", "must be a table for each portfolio, got 5"),
        ("[portfolios.main]", "portfolios.main.cap", 'is missing.*write cap = "5000"'),
        ("[portfolios.'a b']\ncap='1'", 'portfolios."a b"', "portfolio must be 1 to 64 letters"),
        ("[portfolios.'*']\ncap='1'", 'portfolios."*"', "portfolio must be 1 to 64 letters"),
        ("[portfolios.main]\ncap = 5000.5", "portfolios.main.cap", 'the number 5000.5; write cap = "5000.5"'),
        ("[portfolios.main]\ncap = 5000", "portfolios.main.cap", 'the number 5000; write cap = "5000"'),
        ("[portfolios.main]\ncap = nan", "portfolios.main.cap", 'the number nan; write cap = "1500.50"'),
        ("[portfolios.main]\ncap = true", "portfolios.main.cap", "must be an amount in quotes, got True"),
        ("[portfolios.main]\ncap = ['1']", "portfolios.main.cap", "must be an amount in quotes"),
        ("[portfolios.main]\ncap = 'NaN'", "portfolios.main.cap", "got 'NaN'"),
        ("[portfolios.main]\ncap = '1_000'", "portfolios.main.cap", "got '1_000'"),
        ("[portfolios.main]\ncap = '-1'", "portfolios.main.cap", "got '-1'"),
        ("[portfolios.main]\ncap = 'none'", "portfolios.main.cap", "leave it out for none"),
        ("[portfolios.main]\ncap = '1.123456789'", "portfolios.main.cap", "at most 8 decimals"),
        ("[portfolios.main]\ncap = '99999999999999999999'", "portfolios.main.cap", "portfolios.main.cap"),
        ("[portfolios.main]\ncap = '9'\nguarantee = '1'", "portfolios.main.guarantee", "write it under scopes"),
        ("[portfolios.main]\ncap = '9'\nshare_of_equity = '1'", "portfolios.main.share_of_equity", "give one of them"),
        ("[portfolios.main]\ncap = '9'\nscopes = 'x'", "portfolios.main.scopes", "a table for each scope"),
        (SCOPES + "'bot=a' = '5'", 'portfolios.main.scopes."bot=a"', "must be a table such as"),
        (SCOPES + "'bot=a' = { max = '5' }", 'portfolios.main.scopes."bot=a".max', "known are cap, guarantee"),
        (SCOPES + "'bot=a' = { max_position_usd = '0' }", 'portfolios.main.scopes."bot=a".max_position_usd', "above 0"),
        (SCOPES + "bot = { cap = '5' }", "portfolios.main.scopes.bot", "or like 'venue=bybit', got 'bot'"),
        (SCOPES + "portfolio = { cap = '5' }", "portfolios.main.scopes.portfolio", r"stands in \[portfolios.main\]"),
        (SCOPES + "'bot=*' = { guarantee = '5' }", 'portfolios.main.scopes."bot=*".guarantee', "sets only the cap"),
        (SCOPES + "'bot=a' = { guarantee = '9.5' }", "portfolios.main.cap", "9 is below the sum"),
        (SCOPES + "'bot=a' = { guarantee = '1' }\n'x=a' = { guarantee = '1' }",
         'portfolios.main.scopes."x=a".guarantee',
         "does not go with the guarantee of bot=a"),
        (SCOPES + "'bot=a' = { cap = '1' }\n'bot=a' = { cap = '2' }\n", "file", "Cannot overwrite a value .at line 5"),
        ("a = " + "[" * 5000, "file", "is no TOML"),
    ],
)  # fmt: skip
def test_read_caps_file_when_something_is_wrong_then_its_place_is_named(
    text: str | bytes, field: str, message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        read_caps_file(text if isinstance(text, bytes) else text.encode())
    assert refused.value.field == field
