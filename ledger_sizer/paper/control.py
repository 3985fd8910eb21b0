"""Controls the paper venue from Python: `PaperControl` calls the actions of `POST /paper/{venue}/{action}`."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import httpx

DEFAULT_KEY, DEFAULT_SECRET, DEFAULT_PASSPHRASE = "paper", "paper-secret", "paper-passphrase"
"""Credentials of each venue's initial account."""

_PLAIN: dict[str, Any] = {"trust_env": False, "verify": False}
"""The server speaks plain HTTP on this machine. Certificates, which nobody reads, would cost 25 ms a call."""


class PaperControl:
    """Controls one venue and one account of a paper server. url: the server's, as it prints it.

    Every action raises `ValueError` with the server's message when it is refused.
    """

    def __init__(self, url: str, venue: str, api_key: str = DEFAULT_KEY) -> None:
        self.venue = venue
        self._url = f"{url}/paper/{venue}"
        self.api_key = api_key

    def state(self) -> dict[str, Any]:
        """Return the true state: prices, faults, and every account's wallets, positions and open orders."""
        state: dict[str, Any] = httpx.get(self._url, **_PLAIN).json()
        return state

    def open_account(
        self, *, hedged: bool = False, balances: Mapping[str, Decimal] | None = None, secret: str = DEFAULT_SECRET
    ) -> None:
        """Open this control's account. balances: units by asset, 100,000 USDT when None."""
        given = {} if balances is None else {"balances": {asset: str(units) for asset, units in balances.items()}}
        self._post("account", hedged=hedged, secret=secret, **given)

    def deposit(self, asset: str, quantity: Decimal, wallet: str = "spot") -> None:
        """Add units of an asset; a negative quantity withdraws, below 0 as a debt.

        wallet: one of `accounts.WALLETS`; `spot`, `swap`, `delivery` and `margin` are separate on Binance only.
        """
        self._post("deposit", asset=asset, quantity=str(quantity), wallet=wallet)

    def transfer(self, asset: str, quantity: Decimal, source: str, target: str) -> None:
        """Move units of an asset from one wallet to another (`accounts.WALLETS`)."""
        self._post("transfer", asset=asset, quantity=str(quantity), source=source, target=target)

    def funding(self, symbol: str, quantity: Decimal) -> None:
        """Pay funding of a market in its money: to the account, below 0 by it."""
        self._post("funding", symbol=symbol, quantity=str(quantity))

    def open(self, symbol: str, side: str, quantity: Decimal, margin: str = "cross") -> None:
        """Open or add to a position by hand, as a user of the exchange's website would.

        quantity: base units, USD of a coin-margined market. margin: `cross`, or `isolated` for a position beside the
        cross one; an isolated one in a spot market is a margin trade (OKX).
        """
        self._post("open", symbol=symbol, side=side, quantity=str(quantity), margin=margin)

    def close(
        self, symbol: str, quantity: Decimal | None = None, side: str | None = None, margin: str = "cross"
    ) -> None:
        """Close a position by hand, or a part of it. side: `long` or `short`, in a hedge-mode account only."""
        self._post("close", symbol=symbol, quantity=quantity and str(quantity), side=side, margin=margin)

    def liquidate(self, symbol: str, side: str | None = None, margin: str = "cross") -> None:
        """Liquidate: the exchange closes the position, cancels the market's orders and keeps the margin."""
        self._post("liquidate", symbol=symbol, side=side, margin=margin)

    def deleverage(self, symbol: str, quantity: Decimal, side: str | None = None, margin: str = "cross") -> None:
        """Reduce a position to pay for others' losses (auto-deleveraging). quantity: base units."""
        self._post("deleverage", symbol=symbol, quantity=str(quantity), side=side, margin=margin)

    def option(self, market_id: str, contracts: Decimal) -> None:
        """Hold contracts of an option more, or less below 0, by the exchange's own name. They are listed nowhere."""
        self._post("option", id=market_id, contracts=str(contracts))

    def lend(self, asset: str, quantity: Decimal) -> None:
        """Move coins to flexible earn, which Binance lists as `LD` and the name; a negative quantity: bring back."""
        self._post("lend", asset=asset, quantity=str(quantity))

    def interest(self, rate: Decimal, asset: str | None = None) -> None:
        """Let lent coins and debts grow by this fraction. A debt is a balance below 0 (see `deposit`)."""
        self._post("interest", rate=str(rate), asset=asset)

    def fee_asset(self, asset: str | None) -> None:
        """Pay fees in this asset while the order's wallet has enough of it, as BNB at Binance; None: in the usual one.

        The asset needs a price (`list_market`).
        """
        self._post("fee-asset", asset=asset)

    def blank_sides(self, *, on: bool = True) -> None:
        """List the empty side of every hedge-mode market with blank fields (Bybit)."""
        self._post("blank-sides", on=on)

    def flip(self, symbol: str) -> None:
        """Turn a one-way position to the opposite side, same size."""
        self._post("flip", symbol=symbol)

    def list_market(self, symbol: str, market_id: str, price: Decimal, step: Decimal, **more: Decimal) -> None:
        """List a market by ccxt's name and the exchange's own. Its base has this price from now on.

        step: base units, also the smallest order. more: `max_qty`, `contract_size` (base units), `min_notional` (USDT).
        """
        given = {name: str(value) for name, value in {"price": price, "step": step, **more}.items()}
        self._post("list", symbol=symbol, id=market_id, **given)

    def delist(self, symbol: str) -> None:
        """End a market: it is listed no more and has no ticker; coins and positions stay."""
        self._post("delist", symbol=symbol)

    def rename(self, old: str, new: str, ratio: Decimal = Decimal(1)) -> None:
        """Turn each unit of a coin into `ratio` units of a new one, with coins and positions; the old markets end."""
        self._post("rename", old=old, new=new, ratio=str(ratio))

    def contract_size(self, symbol: str, size: Decimal) -> None:
        """Change what one contract counts, base units. Positions keep theirs. Refused where sizes are base units."""
        self._post("contract-size", symbol=symbol, size=str(size))

    def maintenance(self, *, on: bool = True) -> None:
        """Answer every private call with the exchange's own error of maintenance, until switched off."""
        self._post("maintenance", on=on)

    def price(self, asset: str, price: Decimal) -> None:
        """Set an asset's price, USDT, and fill the orders that it reaches."""
        self._post("price", asset=asset, price=str(price))

    def stale(self, *, stale: bool = True) -> None:
        """Serve the present balances and positions until called with `stale=False`, whatever changes."""
        self._post("stale", stale=stale)

    def fills(
        self, *, at_once: bool, kind: str | None = None, side: str | None = None, symbol: str | None = None
    ) -> None:
        """Fill orders at once, or keep them open until `fill` or until this is switched on again.

        kind: keep `market` or `limit` orders open only; side: `buy` or `sell` only; symbol: of this market only. Each
        call keeps more of them; `at_once=True` fills all again.
        """
        self._post("fills", at_once=at_once, kind=kind, side=side, symbol=symbol)

    def cancel(self, order_id: str) -> None:
        """Cancel an open order, as the exchange or a person at its website does."""
        self._post("cancel", order_id=order_id)

    def reject(self, reason: str = "insufficient", *, times: int = 1) -> None:
        """Refuse the next orders. reason: one of `actions.REJECTIONS`."""
        self._post("reject", reason=reason, times=times)

    def funding_rate(self, symbol: str, rate: Decimal) -> None:
        """Set the funding rate of a contract, a fraction per 8 hours. Only `funding` pays."""
        self._post("funding-rate", symbol=symbol, rate=str(rate))

    def fill(self, order_id: str, quantity: Decimal | None = None) -> None:
        """Fill an open order, or `quantity` base units of it. Refused for one that is open no more."""
        self._post("fill", order_id=order_id, quantity=quantity and str(quantity))

    def fault(self, kind: str, path: str = "", *, times: int | None = 1, seconds: float = 5, method: str = "") -> None:
        """Inject a fault into the next `times` requests whose path contains `path` (see `faults.Fault`)."""
        self._post("fault", kind=kind, path=path, times=times, seconds=seconds, method=method)

    def clear_faults(self) -> None:
        """Remove all pending faults."""
        self._post("clear-faults")

    def _post(self, action: str, **form: Any) -> None:
        kept = {name: value for name, value in form.items() if value is not None or name == "times"}
        response = httpx.post(f"{self._url}/{action}", json={"api_key": self.api_key, **kept}, **_PLAIN)
        if response.is_error:
            raise ValueError(response.json()["error"])
