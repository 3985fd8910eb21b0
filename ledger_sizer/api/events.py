"""Streams the decisions of all replicas as server-sent events, resumable without gaps.

The event id says how far every watched portfolio was sent: `main:17`, or `alt:3,main:17`, or a shorter form for many
(`event_cursor`). Decisions have gapless seqs in commit order, so "everything after seq 17" misses nothing. A portfolio
that is newer than the id is sent from its first decision.

The end of a reconciliation is an event too, because a drift that froze nothing appears in no decision. It only tells
clients to read the drifts: it has no id, and a missed one is not sent again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Scope

from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.event_cursor import ALL, EventCursor, ShortId, parse_event_id, require_reached, watch_of
from ledger_sizer.model.errors import Busy, InvalidRequest, LedgerError, Unavailable
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.views.watermarks import Watermark, read_positions, read_watermarks
from ledger_sizer.wire.requests import PortfolioOrDeskText
from ledger_sizer.wire.responses import decision_to_json

_PAGE_SIZE = 200
_RETRY_MS = 2000


class EventFilters(BaseModel):
    """What to watch."""

    model_config = ConfigDict(extra="forbid")

    portfolio: Annotated[PortfolioOrDeskText | None, Query(description="One portfolio; else all this key may see.")] = (
        None
    )


def router(service: ServiceContext) -> APIRouter:
    """The event stream."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")
    poller = _Poller(service)
    content = {"text/event-stream": {"schema": {"type": "string"}}}

    @routes.get("/events", response_class=Response, responses={200: {"content": content}})
    async def events(request: Request, filters: Annotated[EventFilters, Query()]) -> Response:
        """Every decision from now on, or from `Last-Event-ID` on, as server-sent events of the type `decision`.

        Between them `reconciliation` names a portfolio that was just compared with its exchange. Resuming misses
        nothing, but where replicas commit late it may repeat events of some of very many portfolios: look at their seq.
        An id beyond the head of a portfolio is refused, because such a stream would be silent and lose decisions.
        """
        caller = await service.access.require(request.scope, "read")
        if filters.portfolio is not None:
            require_portfolio_access(caller, filters.portfolio)
        sent = request.headers.get("last-event-id")
        resumed = parse_event_id(sent) if sent else None
        if poller.streams >= service.settings.event_streams_max:
            raise Busy(f"{poller.streams} event streams are open, the most this service keeps; try again later")
        now = await run_in_threadpool(read_watermarks, service.reads)
        watched = {name: mark for name, mark in now.items() if _is_watched(caller, filters.portfolio, name)}
        runs = {name: mark.run for name, mark in now.items()}
        heads = {name: mark.seq for name, mark in now.items()}
        if isinstance(resumed, ShortId):
            # An id of all portfolios may be resumed by a key for some. It is not told how far the others are.
            require_reached({resumed.at: resumed.seq} if caller.may_touch(resumed.at) else {}, heads)
            cursor = await run_in_threadpool(_resume, service, caller, resumed, watched)
        else:
            for name in resumed or ():
                require_portfolio_access(caller, name)
            require_reached(resumed or {}, heads)
            seqs = {name: mark.seq if resumed is None else resumed.get(name, 0) for name, mark in watched.items()}
            cursor = EventCursor(watch_of(caller), seqs, max((mark.us for mark in watched.values()), default=0))
        stream = _stream(service, poller, request.scope, filters.portfolio, cursor, runs)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(stream, headers=headers, media_type="text/event-stream")

    return routes


def _resume(service: ServiceContext, caller: ApiKey, resumed: ShortId, watched: Mapping[str, Watermark]) -> EventCursor:
    """Return the cursor to go on after an id of many portfolios. Raises `InvalidRequest` for another key's id."""
    if resumed.watch not in (ALL, watch_of(caller)):
        raise InvalidRequest("Last-Event-ID is of a key for other portfolios; begin anew", field="Last-Event-ID")
    done, in_round = read_positions(service.reads, resumed.done_us, resumed.round_us)
    if resumed.watch != ALL:
        done = {name: seq for name, seq in done.items() if caller.may_touch(name)}
    found = resumed.positions(done, in_round)
    seqs = {name: found.get(name, 0) for name in watched}
    cursor = EventCursor(watch_of(caller), seqs, resumed.done_us)
    if resumed.at:
        cursor.resume_round(resumed.round_us, resumed.at, in_round)
    return cursor


def _is_watched(caller: ApiKey, only: str | None, name: str) -> bool:
    return caller.may_touch(name) and (only is None or name == only)


async def _stream(
    service: ServiceContext,
    poller: "_Poller",
    scope: Scope,
    only: str | None,
    cursor: EventCursor,
    runs: dict[str, int],
) -> AsyncIterator[bytes]:
    """Yield everything after `cursor` and `runs`, then new events as they come, with heartbeat comments in between."""
    with poller.subscribe():
        # The id comes before the first event, so that a client that loses the connection before it has no gap.
        yield f"retry: {_RETRY_MS}\nid: {cursor.event_id}\n\n".encode()
        while not service.stopping.is_set():
            changed, found = poller.changed, poller.watermarks
            cursor.marks = cursor.marks or {name: mark.seq for name, mark in found.items()}
            try:
                # Checked in every round: the stream of a revoked key must end.
                caller = await service.access.require(scope, "read")
                for name, last in sorted(cursor.marks.items()):
                    while last > cursor.sent(name) and name >= cursor.at and _is_watched(caller, only, name):
                        yield await _next_events(service, name, cursor, last)
                if cursor.marks:
                    cursor.end_round()
                for name, mark in found.items():
                    if mark.run > runs.get(name, 0) and _is_watched(caller, only, name):
                        runs[name] = mark.run
                        yield b"event: reconciliation\ndata: " + to_json({"portfolio": name}) + b"\n\n"
                if poller.watermarks is not found:
                    continue
            except LedgerError as error:
                if not error.retryable:
                    return
            try:
                async with asyncio.timeout(service.settings.heartbeat_seconds):
                    await changed.wait()
            except TimeoutError:
                yield b": heartbeat\n\n"


async def _next_events(service: ServiceContext, name: str, cursor: EventCursor, last: int) -> bytes:
    """Return the next decisions of one portfolio up to seq `last` as events, and advance `cursor` past them."""
    after = str(cursor.sent(name))
    page = await run_in_threadpool(service.ledger.history, name, ascending=True, cursor=after, limit=_PAGE_SIZE)
    parts = []
    for decision in page:
        if decision.record.seq > last:
            break  # of the next round, so that the rounds' times part what was sent from what was not
        cursor.advance(name, decision.record.seq, decision.record.decided_us)
        data = to_json(decision_to_json(decision)).decode()
        parts.append(f"event: decision\nid: {cursor.event_id}\ndata: {data}\n\n")
    return "".join(parts).encode()


class _Poller:
    """Polls the database for all event streams of this process, while there are any."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._task: asyncio.Task[None] | None = None
        self.watermarks: dict[str, Watermark] = {}
        self.changed = asyncio.Event()
        self.streams = 0

    @contextmanager
    def subscribe(self) -> Iterator[None]:
        """Count one stream for a `with` block, and poll meanwhile."""
        self.streams += 1
        self._service.metrics.event_streams.set(self.streams)
        if self._task is None or self._task.done():
            self.watermarks = {}  # those of earlier streams are of the past
            self._task = asyncio.create_task(self._poll())
        try:
            yield
        finally:
            self.streams -= 1
            self._service.metrics.event_streams.set(self.streams)

    async def _poll(self) -> None:
        stopping = self._service.stopping
        while self.streams and not stopping.is_set():
            try:
                found = await run_in_threadpool(read_watermarks, self._service.reads)
            except Unavailable:
                found = self.watermarks  # the streams stay open, and a later poll finds what was committed meanwhile
            if found != self.watermarks:
                self.watermarks = found
                self._notify()
            await asyncio.sleep(self._service.settings.event_poll_ms / 1000)
        self._notify()

    def _notify(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
