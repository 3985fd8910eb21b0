"""A desk at the paper venues: real ccxt clients that trade, a ledger, and a reconciler over the accounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from pydantic import SecretStr

from ledger_sizer import Decision, Leg, OrderLeg
from ledger_sizer.exchanges.instrument_refresh import refresh_rules
from ledger_sizer.model.reconciliation import Report
from ledger_sizer.model.units import exact_arithmetic
from ledger_sizer.paper import PaperControl, PaperServer
from tests.support.accounts import Desk
from tests.support.clock import FakeClock
from tests.support.paper_clients import account_at, filled, trader_at

D = Decimal


@dataclass(frozen=True)
class Fill:
    """What an order got. coins: of the asset, fee not subtracted. fee: coins that the venue kept. cost: USD."""

    leg: OrderLeg
    coins: Decimal
    cost: Decimal
    fee: Decimal

    @property
    def price(self) -> Decimal:
        """USD per coin."""
        with exact_arithmetic():
            return self.cost / self.coins

    @property
    def as_leg(self) -> Leg:
        """The leg that a confirm names: the coins that are there after the fee."""
        with exact_arithmetic():
            return Leg(
                self.leg.venue, self.leg.symbol, self.leg.kind, self.leg.side, self.coins - self.fee,
                self.price, account=self.leg.account,
            )  # fmt: skip


class TradingDesk:
    """One bot's accounts at the paper venues, its ledger and its reconciler. The rules of every venue are refreshed.

    accounts: (venue, account name). name: tells the accounts of tests at one server apart.
    """

    def __init__(
        self, url: str, clock: FakeClock, server: PaperServer, accounts: Sequence[tuple[str, str]], name: str,
        options: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.controls: dict[tuple[str, str | None], PaperControl] = {}
        """By venue and account name; None is the first account of a venue."""
        self.traders: dict[tuple[str, str | None], Any] = {}
        read = []
        for venue, account in accounts:
            key = f"{name}-{account}"
            control = PaperControl(server.url, venue, key)
            control.open_account(balances={"USDT": D(1_000_000)})
            trader = trader_at(venue, server.url, api_key=SecretStr(key))
            trader.options.update(options or {})
            read.append(account_at(venue, server.url, api_key=SecretStr(key), account=account))
            read[-1]._client.options.update(options or {})
            for called in (account, None):
                self.controls.setdefault((venue, called), control)
                self.traders.setdefault((venue, called), trader)
        self.desk = Desk(url, clock, read, position_usd=2_000, confirmations=1, stale_after_seconds=None)
        self.ledger = self.desk.ledger
        self.refresh()

    def refresh(self) -> None:
        """Load the rules of every venue, as `instruments refresh` does."""
        for account in self.desk.accounts:
            refresh_rules(self.desk.engine, account)
        for trader in self.traders.values():
            trader.load_markets(True)

    def close(self) -> None:
        """Close the ledger and the connections."""
        self.desk.close()
        for account in self.desk.accounts:
            account.close()

    # --- orders ---

    def order(self, leg: OrderLeg, coins: Decimal | None = None, *, back: bool = False) -> Fill:
        """Send a market order for a leg, whole or for some coins of it, and return its fill. back: the other way."""
        trader = self.traders[leg.venue, leg.account]
        with exact_arithmetic():
            amount = leg.order_amount if coins is None else coins * leg.order_amount / leg.quantity
        if leg.order_cost is not None and coins is None and not back:
            amount = leg.order_cost
        side = leg.side if not back else "sell" if leg.side == "buy" else "buy"
        return self.fill_of(leg, trader.create_order(leg.symbol, "market", side, float(amount)))

    def fill_of(self, leg: OrderLeg, sent: dict[str, Any]) -> Fill:
        """Ask the venue what an order of a leg has got so far."""
        order = filled(self.traders[leg.venue, leg.account], leg.symbol, sent)
        with exact_arithmetic():
            unit = leg.quantity / leg.order_amount
            coins = D(order["filled"]) * unit
            # ccxt names an order's average per unit of the market's base: a thousand coins of 1000PEPE.
            multiplier = unit / D(self.traders[leg.venue, leg.account].market(leg.symbol)["contractSize"] or 1)
            price = D(order["average"]) / multiplier
            fee = order.get("fee") or {}
            base = leg.symbol.partition("/")[0]
            kept = D(fee["cost"]) if fee.get("currency") == base and leg.kind == "spot" and leg.side == "buy" else D(0)
            return Fill(leg, coins, coins * price, kept)

    def price(self, asset: str, price: Decimal) -> None:
        """Move an asset's price at every venue."""
        for control in self.controls.values():
            control.price(asset, price)

    # --- what must hold ---

    def require_agreement(self) -> Report:
        """Reconcile. Fail unless both sides agree."""
        report = self.desk.run()
        assert report.run.outcome == "good", report.run.fetched
        assert (report.findings, report.live) == ((), ()), report.findings
        assert not self.ledger.exposure().frozen
        return report

    def require_no_drift(self) -> None:
        """Reconcile. Fail if there is a drift: what is filled and not told yet is in flight, which is none."""
        report = self.desk.run()
        assert report.run.outcome == "good", report.run.fetched
        assert report.live == (), report.live
        assert not self.ledger.exposure().frozen

    def require_flat(self) -> None:
        """Fail unless nothing is held, open or at a venue, and the ledger is sound. Dust below a step may be left."""
        self.require_agreement()
        exposure = self.ledger.exposure()
        assert (exposure.held, exposure.open) == (0, 0)
        assert self.ledger.positions(state="live").items == ()
        for (_, called), control in self.controls.items():
            if called is not None:
                state = control.state()["accounts"][control.api_key]
                assert state["positions"] == []
                assert state["open_orders"] == []
        assert self.desk.run().live == ()
        report = self.ledger.verify()
        assert report.ok, report.findings

    def require_open(self, granted: Decision, quantity: Decimal, open_usd: Decimal) -> None:
        """Fail unless the position is open with this quantity and exposure, and nothing of it is held any more."""
        position = self.ledger.position(str(granted.position_id))
        assert (position.state, position.quantity, position.held) == ("open", quantity, 0)
        assert position.open == open_usd
