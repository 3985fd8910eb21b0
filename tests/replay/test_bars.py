"""Tests reading market history: accepted formats, skipped rows, and the error for each bad line."""

from __future__ import annotations

import gzip
from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.replay import file_source, generated_source
from ledger_sizer.replay.bars import Bar, BarFile, Candle, Quote
from ledger_sizer.replay.synthetic_market import generated_bars
from tests.support.market_histories import HEADER, csv_lines, quiet_bars, real_history

SPOT = "2023-01-01 00:00:00,binance,bitcoin,BTC/USDT,spot,16541.77,16559.77,16499.01,16526.19,32048.06442,"
PERP = "2023-01-01 00:00:00,binance,bitcoin,BTCUSDT,perpetual,16537.5,16557.1,16488.0,16519.6,32204.874,0.0001"
INVERSE = "2023-01-01 00:00:00,binance,bitcoin,BTCUSDCM,perpetual,16531.2,16545.7,16486.6,16515.5,4362.5,-1.609e-05"


def write_csv(folder: Path, *lines: str, name: str = "history.csv") -> Path:
    path = folder / name
    text = "".join(f"{line}\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path


def with_value(line: str, column: str, value: str) -> str:
    fields = line.split(",")
    fields[HEADER.split(",").index(column)] = value
    return ",".join(fields)


@pytest.mark.parametrize("name", ["history.csv", "history.csv.gz"])
def test_read_when_file_is_plain_or_gzipped_then_bars_are_exact(tmp_path: Path, name: str) -> None:
    file = BarFile(write_csv(tmp_path, HEADER, SPOT, INVERSE, PERP, name=name))
    expected = Quote(
        "binance",
        "BTC",
        Candle(Decimal("16541.77"), Decimal("16559.77"), Decimal("16499.01"), Decimal("16526.19")),
        Candle(Decimal("16537.5"), Decimal("16557.1"), Decimal("16488.0"), Decimal("16519.6")),
        Decimal("0.0001"),
    )
    assert list(file) == [Bar(datetime(2023, 1, 1, tzinfo=UTC), (expected,))]
    assert file.rows == 3
    assert file.skipped == {"coin-margined": 1}


def test_read_when_gzip_has_another_name_then_it_is_recognised(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER, SPOT, PERP, name="history.csv.gz").rename(tmp_path / "history.data")
    assert len(list(BarFile(path))) == 1


def test_read_when_columns_stand_in_another_order_then_bars_are_the_same(tmp_path: Path) -> None:
    order = [10, 8, 7, 6, 5, 4, 3, 1, 0]  # without crypto and volume, which are not used
    lines = [",".join(line.split(",")[place] for place in order) for line in (HEADER, SPOT, PERP)]
    usual = list(BarFile(write_csv(tmp_path, HEADER, SPOT, PERP)))
    assert list(BarFile(write_csv(tmp_path, *lines, name="other.csv"))) == usual


def test_read_when_file_has_a_byte_order_mark_and_windows_lines_then_bars_are_the_same(tmp_path: Path) -> None:
    usual = list(BarFile(write_csv(tmp_path, HEADER, SPOT, PERP)))
    path = tmp_path / "windows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([HEADER, SPOT, PERP, ""]).encode())
    assert list(BarFile(path)) == usual


def test_read_when_times_have_a_zone_then_bars_are_in_utc(tmp_path: Path) -> None:
    lines = [line.replace("2023-01-01 00:00:00", "2023-01-01T02:00:00+02:00") for line in (SPOT, PERP)]
    (bar,) = BarFile(write_csv(tmp_path, HEADER, *lines))
    assert bar.time == datetime(2023, 1, 1, tzinfo=UTC)


def test_read_when_funding_is_hourly_then_every_hour_is_a_bar(tmp_path: Path) -> None:
    lines = [line.replace("00:00:00", f"{hour:02d}:00:00") for hour in range(3) for line in (SPOT, PERP)]
    assert [bar.time.hour for bar in BarFile(write_csv(tmp_path, HEADER, *lines))] == [0, 1, 2]


def test_read_when_bars_are_capped_then_later_lines_are_not_read(tmp_path: Path) -> None:
    lines = [*csv_lines(quiet_bars(["0.0001"] * 3)), "nonsense"]
    path = write_csv(tmp_path, *lines)
    file = BarFile(path, 2)
    assert [bar.time.hour for bar in file] == [0, 8]
    assert file.rows == 4
    with pytest.raises(InvalidRequest, match="line 8: 1 fields"):
        list(BarFile(path))


def test_read_when_file_is_read_again_then_it_starts_anew(tmp_path: Path) -> None:
    file = BarFile(write_csv(tmp_path, HEADER, SPOT, INVERSE, PERP))
    assert list(file) == list(file)
    assert (file.rows, file.skipped) == (3, Counter({"coin-margined": 1}))


def test_read_when_rows_cannot_be_traded_then_they_are_counted_by_reason(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path,
        HEADER,
        SPOT,
        PERP,
        INVERSE,
        with_value(SPOT, "exchange", "okx"),  # spot without its perpetual
        with_value(SPOT, "pair", "BTC/EUR"),
        with_value(PERP, "pair", "BTCUSDC"),
        with_value(SPOT, "exchange", "kraken"),
        with_value(PERP, "exchange", "kraken"),
    )
    source = file_source(path)
    assert source.rows == 8
    assert source.markets == (("binance", "BTC"),)
    assert source.skipped == {
        "coin-margined": 1,
        "one leg missing": 1,
        "unknown pair": 2,
        "no instrument rules": 2,
    }


@pytest.mark.parametrize(
    ("column", "value", "complaint"),
    [
        ("time", "yesterday", "'yesterday' is not a time such as 2023-01-01 08:00:00"),
        ("time", "", "'' is not a time"),
        ("time", "0001-01-01T00:00:00+05:00", "'0001-01-01T00:00:00+05:00' is not a time"),
        ("time", "9999-12-31 23:30:00", "'9999-12-31 23:30:00' is not a time"),
        ("exchange", "", "'' is no name of a venue"),
        ("contract", "future", "'future' is neither 'spot' nor 'perpetual'"),
        ("pair", "", "'' is no pair"),
        ("pair", "BTC\u200bUSDT", "is no pair"),
        ("open", "-16537.5", "'-16537.5' cannot be right: it must be above 0, got -16537.5"),
        ("open", "0", "'0' cannot be right: it must be above 0"),
        ("close", "", "'' is not a number"),
        ("close", "16,519.6", None),
        ("high", "a lot", "'a lot' is not a number"),
        ("low", "NaN", "'NaN' cannot be right: it must be a finite number"),
        ("low", "-Infinity", "cannot be right: it must be a finite number"),
        ("high", "1e31", "'1e31' cannot be right: it is out of range"),
        ("high", "16500", "'16500' is below open 16537.5, low 16488.0 or close 16519.6"),
        ("low", "16530", "'16530' is above open 16537.5 or close 16519.6"),
        ("funding rate", "", "'' is not a number"),
        ("funding rate", "1.5", "'1.5' is more than the whole notional"),
        ("funding rate", "0.01%", "'0.01%' is not a number"),
    ],
)
def test_read_when_a_value_is_bad_then_file_line_column_and_value_are_named(
    tmp_path: Path, column: str, value: str, complaint: str | None
) -> None:
    path = write_csv(tmp_path, HEADER, SPOT, with_value(PERP, column, value))
    with pytest.raises(InvalidRequest) as caught:
        list(BarFile(path))
    message = str(caught.value)
    if complaint is None:
        assert message == "history.csv line 3: 12 fields, the header has 11"
    else:
        assert message.startswith(f"history.csv line 3, column '{column}': ")
        assert complaint in message
    assert caught.value.field == "file"


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "history.csv is empty; a first line with time, exchange, pair"),
        ([HEADER], "history.csv has a header and no rows"),
        ([HEADER.replace(",funding rate", "")], "history.csv line 1 lacks the column 'funding rate'"),
        ([HEADER.replace("crypto", "pair")], "history.csv line 1 has the column 'pair' twice"),
        ([SPOT, PERP], "history.csv line 1 lacks the column 'time'"),
        ([HEADER, SPOT + ",more"], "history.csv line 2: 12 fields, the header has 11"),
        ([HEADER, SPOT, SPOT], "history.csv line 3, column 'pair': 'BTC/USDT' stands twice at 2023-01-01 00:00:00"),
        (
            [HEADER, SPOT, PERP, SPOT.replace("2023-01-01", "2022-12-31")],
            "history.csv line 4, column 'time': '2022-12-31 00:00:00' is earlier than 2023-01-01 00:00:00 above it",
        ),
        (
            [HEADER, SPOT, PERP, SPOT.replace("00:00:00", "00:59:59")],
            "history.csv line 4, column 'time': '2023-01-01 00:59:59' is less than an hour after",
        ),
        ([HEADER, '"' + SPOT], "history.csv cannot be read after line 2"),
    ],
)
def test_read_when_the_file_is_not_in_shape_then_it_says_where(
    tmp_path: Path, lines: list[str], complaint: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        list(BarFile(write_csv(tmp_path, *lines)))
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize("damage", ["cut", "corrupt", "not utf-8"])
def test_read_when_bytes_are_damaged_then_it_says_so(tmp_path: Path, damage: str) -> None:
    whole = gzip.compress("\n".join(csv_lines(generated_bars(1, 20))).encode(), mtime=0)
    damaged = {
        "cut": whole[: len(whole) // 2],
        "corrupt": whole[:600] + bytes(byte ^ 0xFF for byte in whole[600:700]) + whole[700:],
        "not utf-8": f"{HEADER}\n{SPOT}\n".encode().replace(b"binance", b"bin\xffnce"),
    }[damage]
    path = tmp_path / "damaged.csv.gz"
    path.write_bytes(damaged)
    with pytest.raises(InvalidRequest, match=r"^damaged\.csv\.gz (cannot be read after line|line \d+)"):
        list(BarFile(path))


def test_read_when_there_is_no_file_then_it_says_which(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"cannot read .*none\.csv: No such file"):
        file_source(tmp_path / "none.csv")
    with pytest.raises(InvalidRequest, match="is not a regular file"):
        file_source(tmp_path)


def test_survey_when_no_market_can_be_traded_then_it_says_which_could(tmp_path: Path) -> None:
    path = write_csv(tmp_path, HEADER, INVERSE)
    with pytest.raises(InvalidRequest, match=r"history\.csv has no market to trade.*binance BTC.*okx ETH"):
        file_source(path)


def test_survey_when_a_late_line_is_bad_then_it_is_met_before_any_bar_is_played(tmp_path: Path) -> None:
    path = write_csv(tmp_path, *csv_lines(quiet_bars(["0.0001"] * 50)), "bad")
    with pytest.raises(InvalidRequest, match="line 102"):
        file_source(path)


def test_survey_when_history_is_real_then_its_size_is_the_documented_one() -> None:
    if not real_history().exists():
        pytest.skip(f"the recorded market history is not here: {real_history()}")
    source = file_source(real_history())
    assert (source.bars, source.rows) == (1642, 29_556)
    assert source.markets == tuple((venue, coin) for venue in ("binance", "bybit", "okx") for coin in ("BTC", "ETH"))
    assert source.skipped == {"coin-margined": 9852}
    assert (f"{source.first:%Y-%m-%d}", f"{source.last:%Y-%m-%d}") == ("2023-01-01", "2024-07-01")


def test_write_and_read_when_market_is_generated_then_every_bar_comes_back(tmp_path: Path) -> None:
    path = write_csv(tmp_path, *csv_lines(generated_bars(3, 40)), name="generated.csv.gz")
    assert list(BarFile(path)) == list(generated_bars(3, 40))
    assert file_source(path).markets == generated_source(3, 40).markets
