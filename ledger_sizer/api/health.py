"""Routes for operators: liveness, readiness, Prometheus metrics."""

import asyncio

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ledger_sizer.api import response_models
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.responses import RETRY_AFTER_SECONDS, json_response
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.storage.database import SCHEMA_HEAD, schema_version

_READY_TIMEOUT_SECONDS = 3
_QUEUE_FULL_PERCENT = 90
_JUMP_STANDS_SECONDS = 60
"""A jump of the clock that stood this long does not end by itself."""


def router(service: ServiceContext) -> APIRouter:
    """Return the routes for liveness, readiness and metrics."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name)
    readiness = _Readiness(service)

    @routes.get(
        "/healthz", response_model=response_models.HealthForm, responses={503: {"model": response_models.HealthForm}}
    )
    async def healthz() -> Response:
        """The process answers, and needs no restart. Says nothing of the database: restarting would not mend that.

        A jump of the clock that has stood for a minute is mended by a restart, which trusts the new time.
        """
        jump = service.ledger.clock_jump
        if jump is not None and jump.stood_seconds >= _JUMP_STANDS_SECONDS:
            return json_response({"status": "restart", "checks": {"clock": str(jump)}}, 503)
        return json_response({"status": "ok", "checks": {}})

    @routes.get(
        "/readyz", response_model=response_models.HealthForm, responses={503: {"model": response_models.HealthForm}}
    )
    async def readyz() -> Response:
        """Send work here: the database answers at this version's schema, the clock did not jump, the queue has room, no
        stop is under way.
        """
        checks = await readiness.checks()
        if all(check == "ok" for check in checks.values()):
            return json_response({"status": "ready", "checks": checks})
        return json_response({"status": "not_ready", "checks": checks}, 503, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """Prometheus exposition; needs the role `read` once there are keys."""
        await service.access.require(request.scope, "read")
        return Response(await run_in_threadpool(service.metrics.text), media_type=CONTENT_TYPE_LATEST)

    return routes


class _Readiness:
    """Readiness checks. Concurrent requests share one database query."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._query: asyncio.Task[tuple[str, str]] | None = None

    async def checks(self) -> dict[str, str]:
        """Return each check's name, and `ok` or what is wrong."""
        if self._query is None or self._query.done():
            self._query = asyncio.create_task(run_in_threadpool(self._check_database_and_clock))
        try:
            async with asyncio.timeout(_READY_TIMEOUT_SECONDS):
                database, clock = await asyncio.shield(self._query)
        except TimeoutError:
            database = f"no answer within {_READY_TIMEOUT_SECONDS} s"
            clock = "ok" if (jump := self._service.ledger.clock_jump) is None else str(jump)
        ledger = self._service.ledger
        size_max = ledger.settings.ledger.queue_size_max
        full = ledger.pending * 100 >= size_max * _QUEUE_FULL_PERCENT
        return {
            "database": database,
            "clock": clock,
            "queue": f"{ledger.pending} of {size_max} wait" if full else "ok",
            "service": "stopping" if self._service.stopping.is_set() else "ok",
        }

    def _check_database_and_clock(self) -> tuple[str, str]:
        try:
            found = schema_version(self._service.reads)
            clock = self._service.ledger.clock_problem()
        except LedgerError as error:
            return str(error), "ok"
        database = "ok" if found == SCHEMA_HEAD else f"at migration {found}, this version needs {SCHEMA_HEAD}"
        return database, clock or "ok"
