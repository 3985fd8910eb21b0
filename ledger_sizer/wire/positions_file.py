"""The file of positions: CSV with one leg a line, for positions that a ledger takes over from elsewhere.

Every error names the line, the column, the value and the cure. A name that is not known here is an error: what somebody
wrote must not be lost.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import NamedTuple, NoReturn

from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.choices import Side
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.legs import Leg
from ledger_sizer.model.market_names import coin_of, parse_symbol
from ledger_sizer.model.tags import Tags, is_dimension, tags_of
from ledger_sizer.model.units import parse_decimal

COLUMNS = ("position", "venue", "account", "symbol", "side", "quantity", "price", "tags", "opened", "reference")
REQUIRED = ("position", "venue", "symbol", "side", "quantity", "price")
TAG_COLUMN = "tag:"

TEMPLATE = """\
position,venue,account,symbol,side,quantity,price,tags,opened,reference
carry-1,binance,main,BTC/USDT,buy,0.02,50000,strategy=carry;bot=a,2026-11-02T08:00:00Z,order 4711
carry-1,binance,main,BTC/USDT:USDT,sell,0.02,50010,,,
spread-1,bybit,main,ETH/USDT:USDT,buy,1.5,2500,strategy=spread,,
spread-1,okx,main,ETH/USDT:USDT,sell,1.5,2502,,,
alone-1,bybit,main,1000PEPE/USDT:USDT,sell,5000000,0.00001,strategy=trend,,
"""
"""A file with every column: a pair of coins and their perpetual, one across venues, and a leg alone.

Quantities are coins, whatever an exchange counts in, and prices USD per coin: 5,000 contracts of 1000PEPE are
5,000,000.
"""

_SIDES: dict[str, Side] = {"buy": "buy", "long": "buy", "sell": "sell", "short": "sell"}
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")


@dataclass(frozen=True, slots=True)
class FilePosition:
    """A position of a file. name: what its lines call it. line: its first. tags: as the file gives them."""

    name: str
    line: int
    legs: tuple[Leg, ...]
    tags: Tags
    opened: str | None
    reference: str | None


class _Row(NamedTuple):
    line: int
    cells: dict[str, str]


def read_positions_file(data: bytes) -> list[FilePosition]:
    """Return the positions in the order of the file. Raises `InvalidRequest` that names line, column and cure."""
    by_name: dict[str, list[_Row]] = {}
    for row in _rows(data):
        by_name.setdefault(_text(row, "position"), []).append(row)
    if not by_name:
        raise InvalidRequest("the file has no line below its header; see: positions import --template", field="file")
    return [_position(name, rows) for name, rows in by_name.items()]


def _rows(data: bytes) -> Iterator[_Row]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InvalidRequest(f"line {line} is not UTF-8; save the file as UTF-8", field="file") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(header)
        for cells in reader:
            values = [cell.strip() for cell in cells]
            if any(values):
                yield _row(reader.line_num, header, values)
    except csv.Error as error:
        raise InvalidRequest(f"line {reader.line_num} is no CSV: {error}", field="file") from None


def _check_header(header: Sequence[str]) -> None:
    for name in header:
        tag = name.removeprefix(TAG_COLUMN) if name.startswith(TAG_COLUMN) else None
        if name not in COLUMNS and not (tag and is_dimension(tag)):
            cure = f"known are {', '.join(COLUMNS)}, and {TAG_COLUMN}NAME for a tag, such as {TAG_COLUMN}strategy"
            if ";" in name:
                cure = "part the columns by commas"
            raise InvalidRequest(f"line 1 has the column {name!r:.80}; {cure}", field="file")
        if list(header).count(name) > 1:
            raise InvalidRequest(f"line 1 has the column {name!r} twice; leave one out", field="file")
    missing = [name for name in REQUIRED if name not in header]
    if missing:
        raise InvalidRequest(
            f"line 1 lacks the column {missing[0]!r}; the first line names the columns: {','.join(COLUMNS)}",
            field=missing[0],
        )


def _row(line: int, header: Sequence[str], values: Sequence[str]) -> _Row:
    if len(values) > len(header):
        raise InvalidRequest(
            f"line {line} has {len(values)} cells and the header {len(header)}; put a text with a comma in quotes",
            field="file",
        )
    row = _Row(line, dict(zip(header, values, strict=False)))
    for name in REQUIRED:
        if not row.cells.get(name):
            cure = "give the legs of one position the same name" if name == "position" else "every leg needs it"
            _refuse(row, name, f"is empty; {cure}")
    return row


def _position(name: str, rows: Sequence[_Row]) -> FilePosition:
    legs = tuple([_leg(row) for row in rows])
    coins = {coin_of(leg.symbol): row for leg, row in zip(legs, rows, strict=True)}
    if len(coins) > 1:
        row = rows[1] if len(rows) == 2 else next(row for row in coins.values() if row is not rows[0])
        _refuse(
            row, "symbol",
            f"is of another coin than line {rows[0].line} of the position {name!r} ({' and '.join(coins)}); "
            "give it a position of its own",
        )  # fmt: skip
    markets = [leg.market for leg in legs]
    for row, market in zip(rows, markets, strict=True):
        if markets.count(market) > 1 and row is not rows[markets.index(market)]:
            _refuse(row, "symbol", f"is in the position {name!r} already, on this side; write both as one line")
    return FilePosition(
        name, rows[0].line, legs, _tags(rows), _opened(rows), _agreed(rows, "reference")
    )  # fmt: skip


def _leg(row: _Row) -> Leg:
    symbol = _text(row, "symbol")
    said = parse_symbol(symbol)
    if said is None:
        _refuse(row, "symbol", "is no name of ccxt; write BTC/USDT for coins, BTC/USDT:USDT for a perpetual")
    side = _SIDES.get(row.cells["side"].lower())
    if side is None:
        _refuse(row, "side", "is none; write buy or sell")
    quantity, price = _number(row, "quantity"), _number(row, "price")
    account = row.cells.get("account") or None
    try:
        return Leg(_text(row, "venue"), symbol, said.kind, side, quantity, price, account=account)
    except InvalidRequest as error:
        _refuse(row, str(error.field).rpartition(".")[2], f"is refused: {error}")


def _number(row: _Row, column: str) -> Decimal:
    text = row.cells[column]
    if not _NUMBER.fullmatch(text):
        _refuse(row, column, "is no number above 0; write it like 1234.5, without a sign, a unit or a thousands mark")
    number = parse_decimal(text)
    if number <= 0:
        _refuse(row, column, "must be above 0; leave the line out if nothing is there")
    return number


def _text(row: _Row, column: str) -> str:
    try:
        return label_text(row.cells[column], column)
    except InvalidRequest as error:
        _refuse(row, column, f"is refused: {error}")


def _tags(rows: Sequence[_Row]) -> Tags:
    """Return the tags of a position: each line gives the same, or none."""
    found: dict[str, tuple[list[str], _Row]] = {}
    for row in rows:
        here: dict[str, list[str]] = {}
        for pair in filter(None, (part.strip() for part in row.cells.get("tags", "").split(";"))):
            name, equals, value = pair.partition("=")
            if not equals or not value or not is_dimension(name):
                _refuse(row, "tags", "must be like strategy=carry;bot=a")
            here.setdefault(name, []).append(value)
        for column, value in row.cells.items():
            if column.startswith(TAG_COLUMN) and value:
                here.setdefault(column.removeprefix(TAG_COLUMN), []).append(value)
        for name, values in here.items():
            before, first = found.setdefault(name, (values, row))
            if sorted(before) != sorted(values):
                _refuse(
                    row, "tags",
                    f"gives {name} another value than line {first.line} of the same position; give it once",
                )  # fmt: skip
    try:
        return tags_of({name: values for name, (values, _) in found.items()})
    except InvalidRequest as error:
        _refuse(rows[0], "tags", f"is refused: {error}")


def _opened(rows: Sequence[_Row]) -> str | None:
    text = _agreed(rows, "opened")
    if text is None:
        return None
    row = next(row for row in rows if row.cells.get("opened"))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        _refuse(row, "opened", "is no time; write it like 2026-11-02T08:00:00Z")
    if at.tzinfo is None:
        _refuse(row, "opened", "has no time zone; add Z for UTC, like 2026-11-02T08:00:00Z")
    return text


def _agreed(rows: Sequence[_Row], column: str) -> str | None:
    """Return what the lines of a position say in a column: the same, or nothing."""
    first: _Row | None = None
    for row in rows:
        if not row.cells.get(column):
            continue
        if first is not None and row.cells[column] != first.cells[column]:
            _refuse(row, column, f"differs from line {first.line} of the same position; give it once")
        first = first or row
    return None if first is None else first.cells[column]


def _refuse(row: _Row, column: str, what: str) -> NoReturn:
    value = row.cells.get(column, "")
    raise InvalidRequest(f"line {row.line}, {column} {value!r:.80} {what}", field=column) from None
