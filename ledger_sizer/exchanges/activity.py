"""Reads what happened in an account in one market or asset: fills, liquidations, transfers, funding payments.

Only asked for on demand, to explain a difference: at most a dozen requests, none after 20 seconds. What the exchange
does not tell, or not with this key, is said and never raised.
"""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from typing import Any, Literal

from ledger_sizer.exchanges.balances import DOLLAR_ORDER
from ledger_sizer.exchanges.client import error_text
from ledger_sizer.exchanges.market_rules import contract_size_of, named_base_of
from ledger_sizer.exchanges.numbers_read import Unreadable, decimal_of, is_blank, price_of
from ledger_sizer.exchanges.wallets import Wallet
from ledger_sizer.model.account_activity import AccountEvent, Activity, EventSide
from ledger_sizer.model.asset_policies import DOLLARS
from ledger_sizer.model.market_names import split_factor
from ledger_sizer.model.units import exact_arithmetic

_SECONDS_MAX = 20
_REQUESTS_MAX = 12
_LOOKBACK_US = 7 * 24 * 3600 * 1_000_000
"""Exchanges answer with at most a week at once."""

_ROWS_MAX = {"binance": 1000}
_ROWS_MAX_ELSEWHERE = 50

_COARSEST_US = 1_000_000
"""Some times are whole seconds (Binance's withdrawals)."""

_SPOT_MARKETS_MAX = 2

_OKX = frozenset({"okx", "myokx", "okxus"})
_BYBIT = frozenset({"bybit", "bybiteu", "bybitid"})

_OKX_FORCED = {
    **dict.fromkeys([str(code) for code in range(100, 110)], "liquidation"),
    **dict.fromkeys([str(code) for code in range(125, 129)], "deleveraged by the exchange"),
}
"""OKX's `subType` of a fill that nobody ordered."""
_BYBIT_FORCED = {"BustTrade": "liquidation", "AdlTrade": "deleveraged by the exchange"}

_MAIN_WALLETS = frozenset({"spot", "swap", "linear", "unified", "trading", "contract", "main"})
"""ccxt's names of what the wallet of an exchange with one wallet is called in its transfers."""
_SAME_WALLET = {"linear": "swap", "main": "spot", "fund": "funding"}

_BINANCE_ACCOUNTS = {"spot": "MAIN", "swap": "UMFUTURE", "inverse": "CMFUTURE", "margin": "MARGIN",
                     "funding": "FUNDING", "papi": "PORTFOLIO_MARGIN"}  # fmt: skip

_FORBIDDEN = re.compile(r"permission|not authori[sz]ed|no authority", re.IGNORECASE)

_SAME_TIME_US = 5_000_000
"""A liquidation and its fills have times this close to each other."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One request. name: what is asked for, as told. has: ccxt's name of it."""

    name: str
    has: str
    ask: Callable[[], list[AccountEvent]]


class ActivityReader:
    """Reads the activity of one account. wallets: those whose balances are compared with the ledger."""

    def __init__(self, client: Any, wallets: tuple[Wallet, ...]) -> None:
        self._client = client
        self._venue = str(client.id)
        names = {str(wallet.name) for wallet in wallets if wallet.name is not None}
        self._read = frozenset(_SAME_WALLET.get(name, name) for name in names) or _MAIN_WALLETS
        self._limit = _ROWS_MAX.get(self._venue, _ROWS_MAX_ELSEWHERE)

    def read(self, since_us: int, now_us: int, subject: str) -> Activity:
        """Return what happened since a time, at most a week ago. subject: a market's unified name, or an asset."""
        started = time.monotonic()
        begin_us = max(since_us, now_us - _LOOKBACK_US)
        problems = [] if begin_us == since_us else ["only the last 7 days were asked for"]
        events: list[AccountEvent] = []
        for number, question in enumerate(self._questions(begin_us, subject)):
            if not self._client.has.get(question.has):
                problems.append(f"{question.name}: {self._venue} does not tell them")
            elif number >= _REQUESTS_MAX or time.monotonic() - started > _SECONDS_MAX:
                problems.append(f"{question.name}: not asked for, the exchange was too slow")
            else:
                events += self._answers(question, problems)
        events = [event for event in _merge_liquidations(events) if _is_since(event.happened_us, begin_us)]
        events.sort(key=lambda event: (event.happened_us, event.id))
        return Activity(begin_us, tuple(events), tuple(dict.fromkeys(problems)))

    def _answers(self, question: _Question, problems: list[str]) -> list[AccountEvent]:
        import ccxt

        options = self._client.options
        retries = options.get("maxRetriesOnFailure")
        options["maxRetriesOnFailure"] = 0
        try:
            found = question.ask()
        except ccxt.NotSupported:
            problems.append(f"{question.name}: {self._venue} does not tell them here")
        except Exception as error:  # noqa: BLE001 - ccxt's parsers may raise anything for an unexpected response
            words = f"not read: {type(error).__name__}: {error_text(error)}"
            problems.append(f"{question.name}: {'not permitted for this key' if _is_forbidden(error) else words}")
        else:
            if len(found) >= self._limit:
                problems.append(f"{question.name}: there may be more than the {self._limit} that were answered")
            return found
        finally:
            options["maxRetriesOnFailure"] = retries
        return []

    # --- what is asked ---------------------------------------------------------------------------

    def _questions(self, since_us: int, subject: str) -> Iterator[_Question]:
        since = (since_us - _COARSEST_US) // 1000
        if ":" in subject:
            yield from self._of_market(subject, since)
        elif subject in DOLLARS:
            yield from self._of_wallets(subject, since)
            yield _Question("funding payments", "fetchFundingHistory", lambda: self._funding(None, since))
        else:
            markets = [
                f"{subject}/{dollar}" for dollar in DOLLAR_ORDER if f"{subject}/{dollar}" in self._client.markets
            ]
            for symbol in markets[:_SPOT_MARKETS_MAX]:
                yield _Question("fills", "fetchMyTrades", partial(self._fills, symbol, since))
            yield from self._of_wallets(subject, since)

    def _of_market(self, symbol: str, since: int) -> Iterator[_Question]:
        yield _Question("fills", "fetchMyTrades", lambda: self._fills(symbol, since))
        if self._venue in _BYBIT:
            forced = {"execType": "AdlTrade"}
            yield _Question("deleveraging", "fetchMyTrades", lambda: self._fills(symbol, since, forced))
        if self._venue not in _OKX:  # which lists liquidations among the fills
            yield _Question("liquidations", "fetchMyLiquidations", lambda: self._liquidations(symbol, since))
        yield _Question("funding payments", "fetchFundingHistory", lambda: self._funding(symbol, since))

    def _of_wallets(self, asset: str, since: int) -> Iterator[_Question]:
        for parameters in self._transfer_parameters():
            yield _Question("transfers", "fetchTransfers", partial(self._transfers, asset, since, parameters))
        yield _Question("deposits", "fetchDeposits", lambda: self._transactions("deposit", asset, since))
        yield _Question("withdrawals", "fetchWithdrawals", lambda: self._transactions("withdrawal", asset, since))

    def _transfer_parameters(self) -> list[dict[str, str]]:
        """Return the parameters of each request. Binance lists the transfers from one wallet to another."""
        if self._venue != "binance":
            return [{}]
        ours = [_BINANCE_ACCOUNTS[name] for name in _BINANCE_ACCOUNTS if name in self._read]
        others = [_BINANCE_ACCOUNTS[name] for name in _BINANCE_ACCOUNTS if name not in self._read and name != "papi"]
        pairs = [(ours[0], other) for other in others] if ours else []
        return [{"type": f"{one}_{two}"} for pair in pairs for one, two in (pair, pair[::-1])]

    # --- what is answered ------------------------------------------------------------------------

    def _fills(self, symbol: str, since: int, parameters: dict[str, str] | None = None) -> list[AccountEvent]:
        rows = self._client.fetch_my_trades(symbol, since, self._limit, dict(parameters or {}))
        return [self._fill(row) for row in rows]

    def _fill(self, row: dict[str, Any]) -> AccountEvent:
        price = price_of(row.get("price"))
        info = row.get("info") if isinstance(row.get("info"), dict) else {}
        forced = _OKX_FORCED if self._venue in _OKX else _BYBIT_FORCED if self._venue in _BYBIT else {}
        detail = forced.get(str(info.get("subType" if self._venue in _OKX else "execType")), "")  # type: ignore[union-attr]
        coins, per_coin = self._coins(row["symbol"], decimal_of(row.get("amount"), "amount"), price)
        return AccountEvent(
            "liquidation" if detail == "liquidation" else "fill", _time_us(row), row["symbol"], _side(row.get("side")),
            coins, per_coin, str(row.get("id") or ""), str(row.get("order") or ""),
            *_fee(row),
            "" if detail == "liquidation" else detail,
        )  # fmt: skip

    def _liquidations(self, symbol: str, since: int) -> list[AccountEvent]:
        found = []
        for row in self._client.fetch_my_liquidations(symbol, since, self._limit):
            info = row.get("info") or {}
            amount = row.get("contracts") if not is_blank(row.get("contracts")) else row.get("baseValue")
            coins, price = self._coins(symbol, decimal_of(amount, "contracts"), price_of(row.get("price")))
            side = _side(row.get("side") or str(info.get("side", "")).lower())
            order = str(info.get("orderId") or info.get("ordId") or "")
            found.append(AccountEvent("liquidation", _time_us(row), symbol, side, coins, price, order, order))
        return found

    def _funding(self, symbol: str | None, since: int) -> list[AccountEvent]:
        found = []
        for row in self._client.fetch_funding_history(symbol, since, self._limit):
            amount = decimal_of(row.get("amount"), "amount")
            received = (amount > 0) != (self._venue in _BYBIT)  # Bybit tells what was paid
            side: EventSide = "in" if received else "out"
            asset = str(row.get("code") or "")
            if amount:
                detail = str(row.get("symbol") or symbol or "")
                found.append(AccountEvent(
                    "funding", _time_us(row), asset, side, abs(amount), None, str(row.get("id") or ""), detail=detail
                ))  # fmt: skip
        return found

    def _transfers(self, asset: str, since: int, parameters: dict[str, str]) -> list[AccountEvent]:
        found = []
        for row in self._client.fetch_transfers(asset, since, self._limit, dict(parameters)):
            source, target = (self._wallet_name(row.get(name)) for name in ("fromAccount", "toAccount"))
            change = str((row.get("info") or {}).get("balChg") or "")
            leaves, arrives = source in self._read, target in self._read
            if change:  # OKX tells what it changed
                leaves, arrives = change.startswith("-"), not change.startswith("-")
            if row.get("status") in ("failed", "canceled") or (leaves and arrives):
                continue
            found.append(AccountEvent(
                "transfer", _time_us(row), asset, "in" if arrives else "out", self._units(asset, row), None,
                str(row.get("id") or ""), detail=f"from {source or '?'} to {target or '?'}",
                elsewhere=not (leaves or arrives),
            ))  # fmt: skip
        return found

    def _transactions(self, kind: Literal["deposit", "withdrawal"], asset: str, since: int) -> list[AccountEvent]:
        fetch = self._client.fetch_deposits if kind == "deposit" else self._client.fetch_withdrawals
        elsewhere = self._venue in _OKX and "funding" not in self._read
        found = []
        for row in fetch(asset, since, self._limit):
            void = ("failed", "canceled") if kind == "withdrawal" else ("failed", "canceled", "pending")
            if row.get("status") in void:
                continue
            found.append(AccountEvent(
                kind, _time_us(row), asset, "in" if kind == "deposit" else "out", self._units(asset, row), None,
                str(row.get("txid") or row.get("id") or ""), "",
                *_fee(row),
                "in the funding wallet" if elsewhere else "", elsewhere=elsewhere,
            ))  # fmt: skip
        return found

    def _wallet_name(self, name: Any) -> str:
        text = str(name or "").lower()
        return _SAME_WALLET.get(text, text)

    def _units(self, asset: str, row: dict[str, Any]) -> Decimal:
        """Return the coins of an amount of an asset: 1 of `1000SATS` is 1000 SATS."""
        with exact_arithmetic():
            return abs(decimal_of(row.get("amount"), "amount")) * split_factor(asset)[0]

    def _coins(self, symbol: str, amount: Decimal, price: Decimal | None) -> tuple[Decimal, Decimal | None]:
        """Return coins, and USD per coin, of an amount as the exchange counts it."""
        market = self._client.markets[symbol]
        size, factor = contract_size_of(self._venue, market), split_factor(named_base_of(market))[0]
        if size is None:
            raise Unreadable(f"the exchange states no contract size of {symbol}")
        with exact_arithmetic():
            units = amount * size
            if market.get("inverse") and self._venue != "bitget":
                if price is None:
                    raise Unreadable(f"a fill of {symbol} without a price")
                units = units / price  # of a coin-margined contract the exchange counts dollars
            return units * factor, None if price is None else price / factor


def _merge_liquidations(events: list[AccountEvent]) -> list[AccountEvent]:
    """Return the events, with the fills of a liquidation named so and told once: exchanges list both."""
    fills = [event for event in events if event.kind == "fill"]
    forced: set[int] = set()
    rest = []
    for event in events:
        if event.kind != "liquidation" or not event.order:
            rest += [event] if event.kind != "fill" else []
            continue
        same = [
            number for number, fill in enumerate(fills)
            if fill.side == event.side and fill.subject == event.subject
            and (fill.order == event.order or (not fill.order and _are_close(fill, event)))
        ]  # fmt: skip
        forced |= set(same)
        rest += [] if same else [event]
    return rest + [replace(fill, kind="liquidation") if number in forced else fill for number, fill in enumerate(fills)]


def _are_close(one: AccountEvent, other: AccountEvent) -> bool:
    return abs(one.happened_us - other.happened_us) < _SAME_TIME_US


def _is_since(happened_us: int, begin_us: int) -> bool:
    """Whether it happened since a time, as far as the exchange's own times tell: milliseconds, or whole seconds."""
    unit = _COARSEST_US if happened_us % _COARSEST_US == 0 else 1000
    return happened_us + unit > begin_us


def _fee(row: dict[str, Any]) -> tuple[Decimal | None, str]:
    """Return a fee and its asset. ccxt writes some zeros as whole numbers."""
    fee = row.get("fee") or {}
    cost = str(fee["cost"]) if isinstance(fee.get("cost"), int) else fee.get("cost")
    return None if is_blank(cost) else decimal_of(cost, "fee"), str(fee.get("currency") or "")


def _is_forbidden(error: Exception) -> bool:
    """Whether the key may not read this: by ccxt's error, or by the words of one that ccxt does not know."""
    import ccxt

    known = isinstance(error, ccxt.PermissionDenied | ccxt.AuthenticationError)
    return known or bool(_FORBIDDEN.search(str(error)))


def _side(side: Any) -> EventSide:
    if side not in ("buy", "sell"):
        raise Unreadable(f"a side is {side!r}")
    return side  # type: ignore[no-any-return]


def _time_us(row: dict[str, Any]) -> int:
    found = row.get("timestamp")
    if not isinstance(found, int):
        raise Unreadable(f"a time is {found!r}")
    return found * 1000
