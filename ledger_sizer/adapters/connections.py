"""Opens the ledger that a bot names by its address, and tells which client the bot is."""

from typing import Any

from pydantic import SecretStr

from ledger_sizer.config import LedgerSettings
from ledger_sizer.model.caller import DEFAULT_CLIENT


def open_ledger(
    url: str, api_key: str | SecretStr | None = None, patience_seconds: float | None = 1.0, *, is_async: bool = False
) -> Any:
    """Return a client of the service at `http(s)://...`, or the embedded ledger of a database URL.

    patience_seconds: how long a call to the service may take; None: as long as a client of the service waits.
    is_async: return an `AsyncLedgerClient`; an embedded ledger has awaitable methods beside the others.
    """
    if not _is_service(url):
        from ledger_sizer.ledger.ledger import Ledger

        return Ledger.open(url)
    from ledger_sizer.client import AsyncLedgerClient, LedgerClient, RetryPolicy

    client: Any = AsyncLedgerClient if is_async else LedgerClient
    if patience_seconds is None:
        return client(url, api_key)
    patience = RetryPolicy(give_up_seconds=patience_seconds)
    return client(url, api_key, timeout_seconds=patience_seconds, patience=patience)


def client_of(ledger: Any) -> str:
    """Return the name of the client that uses a ledger, or the ledger at a URL: the same at each start."""
    if isinstance(ledger, str) and not _is_service(ledger):
        return LedgerSettings().client or DEFAULT_CLIENT
    caller = getattr(ledger, "caller", None)
    return "desk" if caller is None else str(caller.client)


def _is_service(url: str) -> bool:
    return url.startswith(("http://", "https://"))
