"""Reads the positions of an account through ccxt, family by family and row by row.

A row that cannot be counted in coins is returned as unread and leaves the others read. A family that the exchange does
not answer is named as not asked for or failed; where the first one fails, nothing is known about positions.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ledger_sizer.exchanges.client import error_text
from ledger_sizer.exchanges.market_rules import contract_size_of, named_base_of
from ledger_sizer.exchanges.numbers_read import Unreadable, decimal_of, is_blank, is_nothing, price_of
from ledger_sizer.exchanges.position_calls import PositionCall, families_not_asked, is_of_family, position_calls
from ledger_sizer.exchanges.response_rows import carries_rows
from ledger_sizer.exchanges.snapshot import UnreadRow, VenuePosition, rounded_price
from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.market_names import coins_of_symbol, split_factor
from ledger_sizer.model.units import exact_arithmetic

_DERIVATIVES = ("swap", "future", "option")
_PAGES_MAX = 1000

_INVERSE_IN_COINS = frozenset({"bitget"})
"""Exchanges that count coin-margined contracts in coins. The others count them in dollars."""

_PROFIT_IN_BALANCE = frozenset({
    "apex", "binance", "binancecoinm", "binanceusdm", "bitget", "blofin", "coinbaseinternational", "deribit", "htx",
    "hyperliquid", "krakenfutures", "myokx", "okx", "okxus",
})  # fmt: skip
"""Exchanges of which ccxt returns the equity as the total of a balance (read in ccxt 4.5.90)."""

_HAS_NO_SUCH_ACCOUNT = "USER_NOT_FOUND"
"""What Gate answers about a product for which this user never opened an account: there is nothing in it."""

_AN_OPTION = "an option: its quantity in coins is not fixed"

_SIZES = (
    "size",
    "positionAmt",
    "pos",
    "contracts",
    "quantity",
    "amount",
    "volume",
    "position",
    "currentQty",
    "holdVol",
)
_VALUES = ("avgPrice", "entryPrice", "entry_price", "avgPx", "positionValue", "notional", "unrealisedPnl")
_NAMES = ("symbol", "instId", "contract", "contract_code", "instrument_name", "product_symbol", "market", "pair")
_GLUED = re.compile(r"([A-Z0-9]+?)[-_]?(USDT|USDC|USD)(?:[-_](?:PERP|SWAP|PERPETUAL|UMCBL))?")


@dataclass(slots=True)
class PositionsRead:
    """What was read. positions, unread, not_asked, failed, unrealized_usd: see `Snapshot`. problems: why, as text."""

    positions: tuple[VenuePosition, ...] = ()
    unread: tuple[UnreadRow, ...] = ()
    not_asked: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    unrealized_usd: Decimal = Decimal(0)


_Rows = list[tuple[PositionCall, dict[str, Any]]]


class PositionReader:
    """Reads the positions of one account. reload: loads its markets again."""

    def __init__(self, client: Any, reload: Callable[[], None]) -> None:
        self._client = client
        self._venue = str(client.id)
        self._reload = reload
        self._unlisted: frozenset[str] = frozenset()

    @property
    def has_positions(self) -> bool:
        """Whether the exchange has derivatives. Where ccxt does not say so (None), positions are unknown."""
        has = self._client.has
        return bool(has["fetchPositions"]) or not all(has[kind] is False for kind in _DERIVATIVES)

    def read(self) -> PositionsRead:
        """Fetch and read all positions. Raises whatever ccxt raises, and `Unreadable`."""
        rows, result = self._fetch()
        unlisted = frozenset(str(row.get("symbol")) for _, row in rows if not self._is_listed(row))
        if unlisted - self._unlisted:  # a new listing since the last load, or that response lacked its rows
            self._reload()
            rows, result = self._fetch()
            unlisted = frozenset(str(row.get("symbol")) for _, row in rows if not self._is_listed(row))
        self._unlisted = unlisted
        positions: list[VenuePosition] = []
        unread: list[UnreadRow] = []
        for call, row in rows:
            try:
                positions.append(self._parse(row))
                result.unrealized_usd += self._profit_usd(row)
            except Unreadable as error:
                unread.append(UnreadRow(self._name(row, call), str(error)))
        result.positions = _merge_positions(positions)
        result.unread = tuple(sorted(set(unread), key=lambda one: (one.symbol, one.detail)))
        return result

    # --- rows ------------------------------------------------------------------------------------

    def _fetch(self) -> tuple[_Rows, PositionsRead]:
        rows: _Rows = []
        result = PositionsRead()
        not_asked, failed = {*families_not_asked(self._client)}, set[str]()
        for call in position_calls(self._client):
            try:
                rows += [(call, row) for row in self._pages(call) if not _is_no_position(row)]
            except Exception as error:
                if _HAS_NO_SUCH_ACCOUNT in str(error):
                    continue
                if call.family == "linear":
                    raise
                refused = _is_refusal(error)
                (not_asked if refused else failed).add(call.family)
                told = "are not asked for" if refused else "unknown"
                result.problems.append(f"{call.family} positions {told}: {type(error).__name__}: {error_text(error)}")
        self._require_markets(rows)
        result.not_asked, result.failed = tuple(sorted(not_asked)), tuple(sorted(failed))
        return rows, result

    def _require_markets(self, rows: _Rows) -> None:
        """Raise `Unreadable` where a family has positions and not one market: the list of markets came without rows."""
        if any(call.family == "linear" for call, _ in rows) and not any(
            market.get("contract") for market in self._client.markets.values()
        ):
            self._reload()
            if not any(market.get("contract") for market in self._client.markets.values()):
                raise Unreadable("positions, and a list of markets without one derivative")

    def _pages(self, call: PositionCall) -> list[dict[str, Any]]:
        """Fetch all pages of one call."""
        rows: list[dict[str, Any]] = []
        cursors: set[str] = set()
        parameters = dict(call.parameters)
        while True:
            rows += self._client.fetch_positions(None, dict(parameters))
            if not carries_rows(self._venue, self._client.last_response):
                raise Unreadable("an answer without rows")
            rows += self._skipped_rows()
            cursor = self._next_cursor()
            if not cursor:
                return rows
            if cursor in cursors or len(cursors) >= _PAGES_MAX:
                raise Unreadable(f"the pages do not end (cursor {cursor!r})")
            cursors.add(cursor)
            parameters["cursor"] = cursor

    def _next_cursor(self) -> str | None:
        if not self._venue.startswith("bybit"):
            return None
        result = self._client.last_response["result"]
        return result.get("nextPageCursor") if result["list"] else None

    def _skipped_rows(self) -> list[dict[str, Any]]:
        """Return the rows that ccxt leaves out: of Binance (and Aster, alike) those without an entry price."""
        response = self._client.last_response
        if not isinstance(response, list):
            return []
        raw = [row for row in response if isinstance(row, dict) and "positionAmt" in row and "entryPrice" in row]
        return [{"info": row, "unreadable": "no entry price"} for row in raw if not _above_zero(row["entryPrice"])]

    def _is_listed(self, row: dict[str, Any]) -> bool:
        """Whether the loaded markets have it as a derivative. ccxt names one they lack like a spot market."""
        if _is_of_spot_market(self._venue, row):
            return True  # a margin position: no reload makes it a derivative
        market = self._client.markets.get(row.get("symbol"))
        if market is None:  # an option's name is written from its id, listed or not
            return is_of_family(str(row.get("symbol")), "option")
        return bool(market["contract"])

    def _name(self, row: dict[str, Any], call: PositionCall) -> str:
        """Return the market's unified symbol as far as its name tells it, so that the ledger's side of it is found."""
        named = row.get("symbol")
        if named is None:
            info = row.get("info")
            market_id = next((info[one] for one in _NAMES if isinstance(info, dict) and info.get(one)), None)
            if market_id is None:
                raise Unreadable(f"a position without a market: {row.get('unreadable') or row.get('info')!r}"[:200])
            listed = (self._client.markets_by_id or {}).get(market_id, ())
            derivatives = [one["symbol"] for one in listed if one.get("contract")]
            named = derivatives[0] if derivatives else market_id
        symbol = str(named)
        if ":" in symbol or _is_of_spot_market(self._venue, row):
            return symbol
        base, _, quote = symbol.partition("/")
        if not quote:
            found = _GLUED.fullmatch(symbol.upper())
            if found is None:
                return symbol
            base, quote = self._client.common_currency_code(found[1]), found[2]
        return f"{base}/{quote}:{base if call.family == 'inverse' else quote}"

    # --- one row ---------------------------------------------------------------------------------

    def _parse(self, row: dict[str, Any]) -> VenuePosition:
        if "unreadable" in row:
            raise Unreadable(str(row["unreadable"]))
        symbol, side = str(row.get("symbol")), row.get("side")
        market = self._client.markets.get(symbol)
        if market is None:
            is_option = is_of_family(symbol, "option")
            raise Unreadable(_AN_OPTION if is_option else "a market that the exchange does not list")
        _require_countable(market)
        contracts, side = _size_of(self._venue, row), _side_of(self._venue, row)
        size = contract_size_of(self._venue, market)
        if size is None:
            raise Unreadable("the exchange states no contract size")
        entry, mark = price_of(row.get("entryPrice")), price_of(row.get("markPrice"))
        with exact_arithmetic():
            quantity = contracts * size
        if market.get("inverse") and self._venue not in _INVERSE_IN_COINS:
            quantity = _coins_of_dollars(quantity, entry)
        hedged = row.get("hedged") is not False  # None: the exchange does not say, so nothing is netted
        # In most markets the symbol says the multiplier too. Where it does not, the snapshot has to.
        factor = split_factor(named_base_of(market))[0]
        told = None if factor == coins_of_symbol(symbol)[0] else factor
        return VenuePosition(symbol, side, quantity, entry, mark, hedged, told)

    def _profit_usd(self, row: dict[str, Any]) -> Decimal:
        """Return the profit or loss that the balances do not include, USD. A coin-margined contract has it in coins."""
        if self._venue in _PROFIT_IN_BALANCE or is_blank(row.get("unrealizedPnl")):
            return Decimal(0)
        market = self._client.markets[row["symbol"]]
        profit = decimal_of(row["unrealizedPnl"], "unrealizedPnl")
        if market.get("settle") in DOLLARS:
            return profit
        price = price_of(row.get("markPrice")) or price_of(row.get("entryPrice")) or Decimal(0)
        with exact_arithmetic():
            return profit * price


def _require_countable(market: dict[str, Any]) -> None:
    """Raise `Unreadable` for a market whose positions have no fixed quantity in coins."""
    if not market["contract"]:
        raise Unreadable("a margin position in a spot market, not a derivative")
    if not (market["swap"] or market["future"]):
        raise Unreadable(_AN_OPTION)
    if market.get("inverse"):
        if market.get("quote") not in DOLLARS:
            raise Unreadable(f"a coin-margined contract quoted in {market.get('quote')}, not in dollars")
    elif market.get("linear") is False:
        raise Unreadable("neither a linear nor an inverse contract (quanto): its quantity in coins is not fixed")


def _coins_of_dollars(usd: Decimal, entry: Decimal | None) -> Decimal:
    """Return the coins that so many dollars were at the entry price, which stays while the position does."""
    if entry is None:
        raise Unreadable("a coin-margined position without an entry price: its coins are not known")
    with exact_arithmetic():
        coins = rounded_price(usd / entry)
    if coins is None:
        raise Unreadable(f"{usd} USD at {entry} are no quantity")
    return coins


def _is_no_position(row: dict[str, Any]) -> bool:
    """Whether a row says that there is no position: a size of 0, or an empty side of which nothing is told."""
    info = row.get("info")
    raw = info if isinstance(info, dict) else {}
    try:
        if not is_blank(row.get("contracts")):
            return decimal_of(row["contracts"], "contracts") == 0
        sizes = [_text(raw[name]) for name in _SIZES if name in raw]
        if not sizes or not all(is_nothing(size) for size in sizes):
            return False
        side = raw["side"] if "side" in raw else row.get("side")
        nothing_told = is_blank(side) and all(is_nothing(_text(raw.get(name))) for name in _VALUES)
        return nothing_told or not any(is_blank(size) for size in sizes)
    except Unreadable:
        return False


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _above_zero(value: Any) -> bool:
    try:
        return not is_blank(value) and decimal_of(_text(value), "a price") > 0
    except Unreadable:
        return False


def _size_of(venue: str, row: dict[str, Any]) -> Decimal:
    """Return the size in the exchange's unit. ccxt has none of Bitfinex (its `notional` is it) and of WhiteBIT.

    Where the exchange left the size blank, ccxt works one out from value and price, which is no size.
    """
    info = row.get("info")
    sizes = [info[name] for name in _SIZES if name in info] if isinstance(info, dict) else []
    if sizes and all(is_blank(size) for size in sizes):
        raise Unreadable("its size is blank")
    told = row.get("contracts")
    if venue == "bitfinex":
        told = row.get("notional")
    elif venue == "whitebit":
        told = row["info"].get("amount")
    return decimal_of(told, "its size").copy_abs()


def _side_of(venue: str, row: dict[str, Any]) -> Any:
    side = row.get("side")
    if venue == "whitebit" and side is None:
        side = "short" if decimal_of(row["info"].get("amount"), "its size") < 0 else "long"
    if side not in ("long", "short"):
        raise Unreadable(f"a position without a side: {side!r}")
    return side


def _is_of_spot_market(venue: str, row: dict[str, Any]) -> bool:
    """Whether it is a margin position, which some exchanges list among the others."""
    info = row.get("info")
    kind = info.get("instType") if isinstance(info, dict) else None
    return kind == "MARGIN" or (venue in ("bitfinex", "kraken") and ":" not in str(row.get("symbol")))


def _is_refusal(error: Exception) -> bool:
    """Whether the exchange does not let this key, or this account, see the family: asking again changes nothing."""
    import ccxt

    refusals = (ccxt.AuthenticationError, ccxt.NotSupported, ccxt.BadRequest)
    return isinstance(error, refusals) or "restricted location" in str(error)


def _merge_positions(positions: Iterable[VenuePosition]) -> tuple[VenuePosition, ...]:
    """Merge positions of the same market and side: an exchange may list isolated and cross margin separately."""
    merged: dict[tuple[str, str], VenuePosition] = {}
    for position in positions:
        key = (position.symbol, position.side)
        merged[key] = _merge_two(merged[key], position) if key in merged else position
    return tuple(merged[key] for key in sorted(merged))


def _merge_two(first: VenuePosition, second: VenuePosition) -> VenuePosition:
    with exact_arithmetic():
        quantity = first.quantity + second.quantity
        entry = None
        if first.entry_price is not None and second.entry_price is not None:
            cost = first.quantity * first.entry_price + second.quantity * second.entry_price
            entry = rounded_price(cost / quantity)
    mark = first.mark_price or second.mark_price
    hedged = first.hedged or second.hedged
    return VenuePosition(first.symbol, first.side, quantity, entry, mark, hedged, first.multiplier)
