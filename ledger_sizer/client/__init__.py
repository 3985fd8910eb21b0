"""HTTP client of the ledger service, for bots in other processes and on other hosts.

clients          `LedgerClient` and `AsyncLedgerClient`: send requests and wait
endpoints        the HTTP calls of each client method, and how their responses are read
audit            the same for verify, sweep, export
reconciliation   the same for runs and drifts
responses        parses HTTP responses into values or errors
retry            `RetryPolicy`: exponential back-off with jitter
"""

from ledger_sizer.client.clients import AsyncLedgerClient, LedgerClient
from ledger_sizer.client.responses import NotUnderstood
from ledger_sizer.client.retry import RetryPolicy
from ledger_sizer.model.errors import Forbidden
from ledger_sizer.wire.problems import Unauthenticated

Patience = RetryPolicy
"""The name of `RetryPolicy` up to 0.1. The clients' argument is still called `patience`."""

__all__ = [
    "AsyncLedgerClient",
    "Forbidden",
    "LedgerClient",
    "NotUnderstood",
    "Patience",
    "RetryPolicy",
    "Unauthenticated",
]
