"""Runs freqtrade processes at the paper venue, and watches what they have at the exchange, at every change."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx

from campaign.processes import environment, free_port
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper.accounts import Account
from ledger_sizer.paper.client_config import ccxt_config
from ledger_sizer.paper.exchange import PaperExchange
from ledger_sizer.paper.markets import Venue

VENUE: Venue = "bybit"
COINS = ("BTC", "ETH", "SOL", "XRP")
STRATEGIES = Path(__file__).parent / "strategies"
USER, PASSWORD = "rounds", "rounds-password"
START_SECONDS_MAX = 120.0
NOTHING = Decimal(0)


class Watch:
    """What each account has at the exchange, taken anew at every order, fill and cancel.

    Exposure: coins at their average price, contracts at their entry price, and what entry orders still can buy.
    """

    def __init__(self, exchange: PaperExchange) -> None:
        self._exchange = exchange
        self._lock = threading.Lock()
        self._coins: dict[tuple[str, str], tuple[Decimal, Decimal]] = {}
        self._read: dict[str, int] = {}
        self.most = NOTHING
        self.then = ""
        self.changes = 0
        for name in ("place", "fill", "cancel", "change"):
            setattr(exchange, name, self._after(getattr(exchange, name)))

    def _after(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:
                self.changes += 1
                now = self.exposure()
                if now > self.most:
                    self.most, self.then = now, self.shown()

        return watched

    def exposure(self) -> Decimal:
        """Return what all accounts together have now, USD."""
        with exact_arithmetic():
            return sum(
                [sum([cost for _, cost in self.book(one).values()], NOTHING) + self._resting(one)
                 for one in list(self._exchange.accounts.values())],
                NOTHING,
            )  # fmt: skip

    def shown(self) -> str:
        """Return what is there now, in words, with the time of this machine."""
        held = [
            f"{account.api_key}:{symbol}={cost:.2f}"
            for account in list(self._exchange.accounts.values())
            for symbol, (_, cost) in self.book(account).items()
        ]
        resting = [
            f"{account.api_key}:{order.id}:{order.side} {order.quantity - order.filled} {order.market.symbol}"
            for account in list(self._exchange.accounts.values())
            for order in list(account.orders.values())
            if order.state == "open"
        ]
        return f"{datetime.now(UTC):%H:%M:%S.%f} held {', '.join(held)}; resting {', '.join(resting)}"

    def book(self, account: Account) -> dict[str, tuple[Decimal, Decimal]]:
        """Return coins and their cost by market, what is flat left out."""
        with self._lock, exact_arithmetic():
            trades = list(account.journal.trades)
            for trade in trades[self._read.get(account.api_key, 0) :]:
                if trade.market.kind == "spot":
                    self._take(account.api_key, trade)
            self._read[account.api_key] = len(trades)
            held = {symbol: one for (key, symbol), one in self._coins.items() if key == account.api_key and one[0]}
            for symbol, _, _, position in account.held():
                coins, cost = held.get(symbol, (NOTHING, NOTHING))
                size = abs(position.quantity)
                held[symbol] = coins + size, cost + size * position.entry_price
            return held

    def _take(self, key: str, trade: Any) -> None:
        coins, cost = self._coins.get((key, trade.market.symbol), (NOTHING, NOTHING))
        after = coins + trade.quantity - (trade.fee if trade.fee_asset == trade.market.base else NOTHING)
        cost = cost + (after - coins) * trade.price if after > coins else cost * after / coins
        self._coins[key, trade.market.symbol] = after, cost

    def _resting(self, account: Account) -> Decimal:
        total = NOTHING
        for order in list(account.orders.values()):
            opens = not order.reduce_only if order.market.kind == "swap" else order.side == "buy"
            if order.state == "open" and opens and not order.waits:
                price = order.price or self._exchange.prices[order.market.base]
                total += (order.quantity - order.filled) * price
        return total


@dataclass
class Bot:
    """One freqtrade process with an account, a database and a REST API of its own.

    strategy: a class in `strategies`. settings: of its configuration, beside the usual ones.
    """

    name: str
    folder: Path
    venue_url: str
    strategy: str
    settings: dict[str, Any] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """File with everything that the process writes."""
        return self.folder / f"{self.name}.log"

    def start(self) -> Bot:
        """Start the process."""
        user = self.folder / f"user-{self.name}"
        user.mkdir(exist_ok=True)
        config = self.folder / f"{self.name}.json"
        config.write_text(json.dumps(self._config(), indent=1))
        command = [
            sys.executable, "-m", "freqtrade", "trade", "-c", str(config), "--strategy", self.strategy,
            "--strategy-path", str(STRATEGIES), "--userdir", str(user),
            "--db-url", f"sqlite:///{self.folder / self.name}.sqlite",
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        return self

    def wait_until_running(self) -> None:
        """Wait until its REST API says that it trades."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            with suppress(httpx.HTTPError, ValueError):
                if self.call("GET", "health").get("last_process_ts"):
                    return
            if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"bot {self.name} did not start: {self.log_end()}")
            time.sleep(0.2)

    def kill(self) -> None:
        """Kill the process, with SIGKILL."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End the process as Ctrl-C does; kill it after a while."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def call(self, method: str, path: str, **body: Any) -> Any:
        """Call its REST API and return the answer. Raises `httpx.HTTPError` for an error."""
        response = httpx.request(
            method, f"http://127.0.0.1:{self.port}/api/v1/{path}", json=body or None, auth=(USER, PASSWORD), timeout=60,
            trust_env=False,
        )  # fmt: skip
        response.raise_for_status()
        return response.json()

    def log_end(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""

    def _config(self) -> dict[str, Any]:
        futures = self.settings.get("trading_mode") == "futures"
        pricing = {"price_side": "same", "use_order_book": True, "order_book_top": 1}
        base = {
            "bot_name": self.name, "dry_run": False, "max_open_trades": 10, "stake_currency": "USDT",
            "stake_amount": 120, "tradable_balance_ratio": 0.99, "trading_mode": "spot",
            "margin_mode": "isolated" if futures else "",
            "timeframe": "1m", "cancel_open_orders_on_exit": False, "force_entry_enable": True,
            "unfilledtimeout": {"entry": 4, "exit": 4, "unit": "seconds"},
            "entry_pricing": pricing, "exit_pricing": pricing,
            "exchange": {
                "name": VENUE, "key": self.name, "secret": "paper-secret", "password": "paper-passphrase",
                "enable_ws": False, "ccxt_config": ccxt_config(VENUE, self.venue_url),
                "pair_whitelist": [f"{coin}/USDT{':USDT' if futures else ''}" for coin in COINS],
            },
            "order_types": {"entry": "limit", "exit": "limit", "stoploss": "market", "stoploss_on_exchange": False},
            "pairlists": [{"method": "StaticPairList"}], "internals": {"process_throttle_secs": 1},
            "initial_state": "running", "eager": {},
            "api_server": {
                "enabled": True, "listen_ip_address": "127.0.0.1", "listen_port": self.port, "verbosity": "error",
                "enable_openapi": False, "jwt_secret_key": "x" * 40, "ws_token": "y" * 40, "CORS_origins": [],
                "username": USER, "password": PASSWORD,
            },
        }  # fmt: skip
        return {**base, **self.settings}
