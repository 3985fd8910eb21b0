"""The client library: the ledger over HTTP, for bots in other processes and on other hosts.

calls      which HTTP calls a method makes, and how their answers are read
answers    an HTTP reply as a value, or as an error that cannot be mistaken for a grant
patience   when to ask again, and when to give up
faces      `LedgerClient` and `AsyncLedgerClient`, which only send bytes and wait
"""

from ledger_sizer.client.clients import AsyncLedgerClient, LedgerClient
from ledger_sizer.client.responses import NotUnderstood
from ledger_sizer.client.retry import RetryPolicy
from ledger_sizer.wire.problems import Forbidden, Unauthenticated

Patience = RetryPolicy
"""The name of `RetryPolicy` until 0.1; the clients' argument is still called `patience`."""

__all__ = [
    "AsyncLedgerClient",
    "Forbidden",
    "LedgerClient",
    "NotUnderstood",
    "Patience",
    "RetryPolicy",
    "Unauthenticated",
]
