"""Which exceptions leave the fate of an order unknown: it may be live at the exchange although its call failed.

A time-out, a lost connection, a cancelled call, our own `Unavailable`. The same errors of other libraries are
recognised where these are loaded; none of them is imported here.
"""

import asyncio
import errno
import sys
from collections.abc import Iterator, Mapping

from ledger_sizer.model.errors import Unavailable

_OWN: tuple[type[BaseException], ...] = (TimeoutError, ConnectionError, asyncio.CancelledError, Unavailable)
"""A cancelled call is one of them, because a time-out around a block arrives in it as a cancellation."""

_ERRNOS = frozenset((errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.EPIPE))
"""Of an `OSError` that is no `ConnectionError`: the network went away."""

_OF_LIBRARIES: Mapping[str, tuple[str, ...]] = {
    "aiohttp": ("ClientConnectionError", "ClientPayloadError"),
    "asyncio": ("IncompleteReadError",),
    "ccxt": ("OperationFailed",),
    "http.client": ("IncompleteRead", "BadStatusLine"),
    "httpcore": ("NetworkError", "TimeoutException", "ProtocolError"),
    "httpx": ("TransportError",),
    "requests": ("Timeout", "ConnectionError"),
    "requests.exceptions": ("ChunkedEncodingError", "ContentDecodingError"),
    "ssl": ("SSLEOFError", "SSLZeroReturnError"),
    "urllib3.exceptions": ("TimeoutError", "ProtocolError", "NewConnectionError", "MaxRetryError"),
    "websocket": ("WebSocketConnectionClosedException", "WebSocketTimeoutException"),
    "websockets.exceptions": ("ConnectionClosed",),
}
"""Public names of classes, by the module that has them. In ccxt, `NetworkError` and `BadResponse` are kinds of it."""

_REFUSALS: Mapping[str, tuple[str, ...]] = {"ccxt": ("DDoSProtection", "InvalidNonce", "RateLimitExceeded")}
"""Kinds of the classes above by which the exchange says that it did not take the order."""


def outcome_unknown(error: BaseException, before: BaseException | None = None) -> bool:
    """Whether an exception leaves the fate of an order unknown.

    True where it, an exception in its group, or one that it was raised from or while handling is of such a kind. What
    `raise ... from None` hides counts too: it is hidden from a traceback, and the order may be live all the same.
    before: an exception that was being handled already when the work began; it and what led to it say nothing.
    """
    kinds, refusals = _loaded(_OF_LIBRARIES), _loaded(_REFUSALS)
    return any(_is_unknown(one, kinds, refusals) for one in _causes(error, before))


def _is_unknown(
    error: BaseException, kinds: tuple[type[BaseException], ...], refusals: tuple[type[BaseException], ...]
) -> bool:
    if isinstance(error, refusals):
        return False
    return isinstance(error, (*_OWN, *kinds)) or (isinstance(error, OSError) and error.errno in _ERRNOS)


def _loaded(names: Mapping[str, tuple[str, ...]]) -> tuple[type[BaseException], ...]:
    found = [
        getattr(module, name, None)
        for module_name, class_names in names.items()
        if (module := sys.modules.get(module_name)) is not None
        for name in class_names
    ]
    return tuple([one for one in found if isinstance(one, type) and issubclass(one, BaseException)])


def _causes(error: BaseException, before: BaseException | None) -> Iterator[BaseException]:
    """Yield the exception, and whatever led to it, each once; without what came before the work."""
    seen = set() if before is None else {id(one) for one in _causes(before, None)}
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        waiting += [cause for cause in (*inner, one.__cause__, one.__context__) if cause is not None]
