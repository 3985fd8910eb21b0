"""Moves coins between an account's wallets on the exchanges' own calls. Bots that move money call these."""

from collections.abc import Callable, Mapping
from typing import Any

from ledger_sizer.paper import events
from ledger_sizer.paper.accounts import Account, RequestRefused, Wallet
from ledger_sizer.paper.http import ExchangeRequest, Handler, decimal_of
from ledger_sizer.paper.told import BINANCE_WALLETS

_BYBIT_WALLETS: Mapping[str, Wallet] = {"UNIFIED": "spot", "FUND": "funding"}
_OKX_WALLETS: Mapping[str, Wallet] = {"18": "spot", "6": "funding"}
_BY_BINANCE_NAME = {name: wallet for wallet, name in BINANCE_WALLETS.items()}

Routes = Mapping[tuple[str, str], Handler]


def _move(
    account: Account, arguments: Mapping[str, Any], wallets: Mapping[str, Any], source: str, target: str,
    asset: str, amount: str,
) -> int:  # fmt: skip
    """Move what a request says, and return the movement's number. Raises `RequestRefused`."""
    if source not in wallets or target not in wallets or source == target:
        raise RequestRefused("bad_request", f"no transfer from {source!r} to {target!r}")
    quantity = decimal_of(arguments, amount)
    events.transfer(account, str(arguments.get(asset)), quantity, wallets[source], wallets[target])
    return account.journal.movements[-1].id


def binance_transfers() -> Routes:
    """Return Binance's call: `type` names both wallets, such as `MAIN_UMFUTURE`."""

    def transfer(account: Account, request: ExchangeRequest) -> Any:
        source, _, target = str(request.arguments.get("type")).partition("_")
        return {"tranId": _move(account, request.arguments, _BY_BINANCE_NAME, source, target, "asset", "amount")}

    return {("POST", "/sapi/v1/asset/transfer"): transfer}


def bybit_transfers(success: Callable[[Any], Any]) -> Routes:
    """Return Bybit's call."""

    def transfer(account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        source, target = str(arguments.get("fromAccountType")), str(arguments.get("toAccountType"))
        _move(account, arguments, _BYBIT_WALLETS, source, target, "coin", "amount")
        return success({"transferId": arguments.get("transferId"), "status": "SUCCESS"})

    return {("POST", "/v5/asset/transfer/inter-transfer"): transfer}


def okx_transfers(success: Callable[[list[Any]], Any]) -> Routes:
    """Return OKX's call."""

    def transfer(account: Account, request: ExchangeRequest) -> Any:
        arguments = request.arguments
        source, target = str(arguments.get("from")), str(arguments.get("to"))
        number = _move(account, arguments, _OKX_WALLETS, source, target, "ccy", "amt")
        names = {name: arguments.get(name) for name in ("ccy", "amt", "from", "to")}
        return success([{"transId": str(number), "clientId": "", **names}])

    return {("POST", "/api/v5/asset/transfer"): transfer}
