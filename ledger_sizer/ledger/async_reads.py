"""The reads of a ledger as awaitable methods, made from the sync ones: each runs in a thread of the loop's pool."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from ledger_sizer.ledger.reads import LedgerReads

P = ParamSpec("P")
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])


def _awaitable(
    read: Callable[Concatenate[LedgerReads, P], T],
) -> Callable[Concatenate[LedgerReads, P], Coroutine[Any, Any, T]]:
    """Build the awaitable form of a read. Cancelling it stops the wait; the read itself ends on its own."""

    async def method(self: LedgerReads, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.to_thread(read, self, *args, **kwargs)

    return _described(method, read, "Async")


def _streamed(
    read: Callable[Concatenate[LedgerReads, P], Iterator[bytes]],
) -> Callable[Concatenate[LedgerReads, P], AsyncIterator[bytes]]:
    """Build the form of a stream for `async for`: each part is read in a thread when it is asked for."""

    async def method(self: LedgerReads, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[bytes]:
        parts = await asyncio.to_thread(read, self, *args, **kwargs)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield part

    return _described(method, read, "For `async for`:")


def _described(method: M, read: Callable[..., Any], how: str) -> M:
    """Give the method the name, arguments and documentation of its read, for `help()` and editors."""
    method.__name__ = f"{read.__name__}_async"
    method.__qualname__ = f"AsyncReads.{method.__name__}"
    method.__doc__ = f"{how} `{read.__name__}`: {inspect.getdoc(read)}"
    method.__signature__ = inspect.signature(read)  # type: ignore[attr-defined]
    return method


class AsyncReads(LedgerReads):
    """The reads of `Ledger` under their names with `_async`. A test compares them with `LedgerReads`.

    `verify_async` calls its `progress` in the thread that reads.
    """

    portfolios_async = _awaitable(LedgerReads.portfolios)
    exposure_async = _awaitable(LedgerReads.exposure)
    exposure_page_async = _awaitable(LedgerReads.exposure_page)
    position_async = _awaitable(LedgerReads.position)
    positions_async = _awaitable(LedgerReads.positions)
    history_async = _awaitable(LedgerReads.history)
    export_async = _streamed(LedgerReads.export)
    lookup_async = _awaitable(LedgerReads.lookup)
    desk_status_async = _awaitable(LedgerReads.desk_status)
    desk_async = _awaitable(LedgerReads.desk)
    decision_async = _awaitable(LedgerReads.decision)
    overview_async = _awaitable(LedgerReads.overview)
    net_async = _awaitable(LedgerReads.net)
    explain_async = _awaitable(LedgerReads.explain)
    heads_async = _awaitable(LedgerReads.heads)
    verify_async = _awaitable(LedgerReads.verify)
