"""An exchange that answers with given JSON: the real ccxt client and its parsers, without a server."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

import requests

from ledger_sizer.exchanges.accounts import ExchangeAccount
from ledger_sizer.model.exchange_account import ExchangeAccountSettings


class CannedSession(requests.Session):
    """Answers each request by the end of its path, and keeps what was asked for. Others are not found (404)."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self.answers = answers
        self.asked: list[str] = []

    def request(self, method: Any, url: Any, *_: Any, **__: Any) -> requests.Response:
        """Return the answer as the network would."""
        parts = urlsplit(str(url))
        self.asked.append(f"{method} {parts.netloc}{parts.path}")
        found = [answer for path, answer in self.answers.items() if f"{parts.netloc}{parts.path}".endswith(path)]
        response = requests.Response()
        response.status_code, response.reason = (200, "OK") if found else (404, "Not Found")
        response._content = json.dumps(found[0] if found else {"msg": f"no answer for {url}"}).encode()
        response.headers["Content-Type"] = "application/json"
        return response


def canned_account(settings: ExchangeAccountSettings, answers: dict[str, Any]) -> tuple[ExchangeAccount, CannedSession]:
    """Return an account whose exchange answers so, with its markets taken as loaded, and its session."""
    account = ExchangeAccount(settings)
    session = CannedSession(answers)
    account._client.session = session
    account._client.enableRateLimit = False
    return account, session
