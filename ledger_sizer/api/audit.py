"""Routes that go over the whole ledger: verify it, and free its overdue holds. Both are bounded, so that bots go on."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator

from anyio import to_thread
from fastapi import APIRouter, Request
from pydantic import Field
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from ledger_sizer.api import audit_models, response_models
from ledger_sizer.api.auth import require_portfolio_access
from ledger_sizer.api.context import Reader, ServiceContext, Trader
from ledger_sizer.api.request_body import body_schema, parse_body
from ledger_sizer.api.responses import json_response
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.errors import Busy, Closed
from ledger_sizer.model.verification import VerifyReport
from ledger_sizer.service.api_keys import ApiKey
from ledger_sizer.wire.requests import Body, PortfolioOrDeskText
from ledger_sizer.wire.verification import REPORT

BEAT_SECONDS = 1.0
"""Time between the blanks that a verification sends while it reads, so that nobody takes the wait for a dead peer."""

SWEEP_SECONDS_MAX = 4.0
"""Longest time of one sweep call. A client waits 10 s for an answer by default."""


class PortfolioBody(Body):
    """Which portfolio."""

    portfolio: PortfolioOrDeskText | None = Field(
        None, description="One portfolio, * for the desk's own chain; else all this key may see."
    )


def router(service: ServiceContext) -> APIRouter:
    """Return the routes that go over the whole ledger."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name, prefix="/v1")
    verification = _Verification(service)
    body_form = body_schema(PortfolioBody, required=False)

    @routes.post("/verify", response_model=audit_models.VerifyForm, openapi_extra={**body_form, "x-role": "read"})
    async def verify(request: Request, caller: Reader) -> Response:
        """Check the audit chains from their start, and every counter against the positions.

        Reads all decisions, so it may take minutes; blanks come while it reads. It stops when the caller hangs up.
        One at a time in each process of the service, others get 503. The answer is 200 also where `ok` is false.
        """
        body = await parse_body(request, PortfolioBody)
        names = await _portfolios(service, caller, body.portfolio)
        return await verification.answer(names)

    @routes.post("/sweep", response_model=response_models.SweepForm, openapi_extra={**body_form, "x-role": "trade"})
    async def sweep(request: Request, caller: Trader) -> Response:
        """Free overdue holds for some seconds. While `more` is true there are others: call again."""
        body = await parse_body(request, PortfolioBody)
        names = await _portfolios(service, caller, body.portfolio)
        slices = _slices(service.ledger, names)
        work = to_thread.run_sync(_sweep_for_a_while, slices, abandon_on_cancel=True)
        freed, more = await service.deadline.wait_for(work)
        return json_response({"freed": freed, "more": more})

    return routes


async def _portfolios(service: ServiceContext, caller: ApiKey, asked: str | None) -> list[str] | None:
    """Return the portfolios to go over, None for all: the one asked for, else those of the key that exist."""
    if asked is not None:
        require_portfolio_access(caller, asked)
        return [asked]
    if caller.portfolios is None:
        return None
    return [name for name in await run_in_threadpool(service.ledger.portfolios) if caller.may_touch(name)]


# --- verify ------------------------------------------------------------------------------------------------------


class _Abandoned(Exception):
    """The caller of a verification has gone, or the service stops."""


class _Verification:
    """Verifies in a thread, one caller at a time."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._turn = threading.Lock()

    async def answer(self, names: list[str] | None) -> Response:
        """Return the report, after blanks where it takes longer. Raises `Busy` while another one is made."""
        if not self._turn.acquire(blocking=False):
            raise Busy("this process of the service verifies already, one caller at a time; try again later")
        abandoned = threading.Event()
        task = asyncio.ensure_future(to_thread.run_sync(self._verify, names, abandoned))
        task.add_done_callback(_take_exception)
        try:
            done, _ = await asyncio.wait({task}, timeout=BEAT_SECONDS)
        except BaseException:
            abandoned.set()
            raise
        if done:
            return json_response(REPORT.to_json(task.result()))
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_beats(task, abandoned), headers=headers, media_type="application/json")

    def _verify(self, names: list[str] | None, abandoned: threading.Event) -> VerifyReport:
        def progress(_done: int, _total: int) -> None:
            if abandoned.is_set():
                raise _Abandoned
            if self._service.stopping.is_set():
                raise Closed("the service is stopping; verify again at another replica")

        ledger = self._service.ledger
        try:
            if names is None:
                return ledger.verify(progress=progress)
            return _merged([ledger.verify(name, progress) for name in names])
        finally:
            self._turn.release()


async def _beats(task: "asyncio.Future[VerifyReport]", abandoned: threading.Event) -> AsyncIterator[bytes]:
    """Yield a blank now and then, which JSON allows before a value, and at last the report."""
    try:
        while not task.done():
            yield b" "
            await asyncio.wait({task}, timeout=BEAT_SECONDS)
        # An error breaks the connection here, so that no reader takes a part for the whole.
        yield to_json(REPORT.to_json(task.result()))
    finally:
        abandoned.set()


def _take_exception(task: "asyncio.Future[VerifyReport]") -> None:
    """Look at a task's exception, which nobody may be there to get."""
    if not task.cancelled():
        task.exception()


def _merged(reports: list[VerifyReport]) -> VerifyReport:
    """Return one report of several portfolios. What is wrong with the schema is in each of theirs, and told once."""
    return VerifyReport(
        tuple(dict.fromkeys(finding for report in reports for finding in report.findings)),
        sum(report.decisions for report in reports),
        sum(report.positions for report in reports),
        {name: head for report in reports for name, head in report.heads.items()},
    )


# --- sweep -------------------------------------------------------------------------------------------------------


def _slices(ledger: Ledger, names: Iterable[str] | None) -> Iterator[int]:
    """Free overdue holds slice by slice. Yields after each commit how many it freed."""
    if names is None:
        yield from ledger.sweep_in_slices()
        return
    for name in names:
        yield from ledger.sweep_in_slices(name)


def _sweep_for_a_while(slices: Iterator[int]) -> tuple[int, bool]:
    """Return how many holds were freed, and whether some may be left."""
    end = time.monotonic() + SWEEP_SECONDS_MAX
    freed = 0
    for slice_freed in slices:
        freed += slice_freed
        if time.monotonic() >= end:
            return freed, True
    return freed, False
