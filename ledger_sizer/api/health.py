"""Routes for operators: liveness, readiness, Prometheus metrics."""

import asyncio
import time
from collections.abc import Callable

from anyio import to_thread
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from ledger_sizer.api import audit_models
from ledger_sizer.api.context import ServiceContext
from ledger_sizer.api.responses import RETRY_AFTER_SECONDS, json_response, log_untold
from ledger_sizer.model.errors import LedgerError
from ledger_sizer.storage.database import SCHEMA_HEAD, schema_version

_READY_TIMEOUT_SECONDS = 3
_QUEUE_FULL_PERCENT = 90


def router(service: ServiceContext) -> APIRouter:
    """Return the routes for liveness, readiness and metrics."""
    routes = APIRouter(generate_unique_id_function=lambda route: route.name)
    readiness = _Readiness(service)

    @routes.get("/healthz", response_model=audit_models.HealthForm, responses={503: {"model": audit_models.HealthForm}})
    async def healthz() -> Response:
        """The process works. Says nothing of the database: only what a restart would mend is bad."""
        reasons = service.ledger.restart_reasons
        if not reasons:
            return json_response({"status": "ok", "checks": {}})
        return json_response({"status": "restart", "checks": reasons}, 503)

    @routes.get("/readyz", response_model=audit_models.HealthForm, responses={503: {"model": audit_models.HealthForm}})
    async def readyz() -> Response:
        """Send work here: the database answers at this version's schema and takes writes, the clock did not jump, the
        queue has room, no stop is under way.
        """
        checks = await readiness.checks()
        if all(check == "ok" for check in checks.values()):
            return json_response({"status": "ready", "checks": checks})
        return json_response({"status": "not_ready", "checks": checks}, 503, {"Retry-After": str(RETRY_AFTER_SECONDS)})

    @routes.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics(request: Request) -> Response:
        """Prometheus exposition; needs the role `read` once there are keys. Shows only portfolios the key may see."""
        caller = await service.access.require(request.scope, "read")
        text = await run_in_threadpool(service.metrics.text, caller.portfolios)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return routes


class _Readiness:
    """Readiness checks. Concurrent requests share one call of each check that needs the database."""

    def __init__(self, service: ServiceContext) -> None:
        self._service = service
        self._tasks: dict[str, asyncio.Task[str]] = {}
        self._writes = "ok"
        self._next_probe = 0.0

    async def checks(self) -> dict[str, str]:
        """Return each check's name, and `ok` or what is wrong."""
        ledger = self._service.ledger
        checks = {"database": self._check_database, "clock": self._check_clock, "writes": self._check_writes}
        told = await asyncio.gather(*(self._ask(name, check) for name, check in checks.items()))
        size_max = ledger.settings.ledger.queue_size_max
        full = ledger.pending * 100 >= size_max * _QUEUE_FULL_PERCENT
        return {
            **dict(zip(checks, told, strict=True)),
            "queue": f"{ledger.pending} of {size_max} wait" if full else "ok",
            "service": "stopping" if self._service.stopping.is_set() else "ok",
        }

    async def _ask(self, name: str, check: Callable[[], str]) -> str:
        """Return what a check finds, or that it takes too long."""
        task = self._tasks.get(name)
        if task is None or task.done():
            task = self._tasks[name] = asyncio.create_task(to_thread.run_sync(check, abandon_on_cancel=True))
        try:
            async with asyncio.timeout(_READY_TIMEOUT_SECONDS):
                return await asyncio.shield(task)
        except TimeoutError:
            return f"no answer within {_READY_TIMEOUT_SECONDS} s"

    def _check_clock(self) -> str:
        try:
            return self._service.ledger.clock_problem() or "ok"
        except LedgerError:
            return "ok"  # without the database its clock cannot be read, and the check of the database says so

    def _check_writes(self) -> str:
        """Ask the database only after a write failed, and then with a real write, at most once a second."""
        if not self._service.ledger.writes_failed:
            return "ok"
        if time.monotonic() >= self._next_probe:
            self._next_probe = time.monotonic() + 1
            try:
                self._service.ledger.probe_writes()
                self._writes = "ok"
            except LedgerError as error:
                log_untold(error)
                self._writes = "the database takes no writes"
        return self._writes

    def _check_database(self) -> str:
        try:
            found = schema_version(self._service.reads)
        except LedgerError as error:
            log_untold(error)
            return error.told
        return "ok" if found == SCHEMA_HEAD else f"at migration {found}, this version needs {SCHEMA_HEAD}"
