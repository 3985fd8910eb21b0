"""`HotPathRouter` finds the same endpoints as the app's own router; `Deadline` ends late waits only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.routing import Match

from ledger_sizer.api.commands import HotPathRouter
from ledger_sizer.api.deadline import Deadline
from ledger_sizer.model.errors import Unavailable
from ledger_sizer.wire.requests import BODIES
from tests.conftest import NewDatabase
from tests.support.services import Running, serving

HOT = ["/v1/reservations", "/v1/batch", *(f"/v1/positions/main-17/{verb}" for verb in ("confirm", "release", "extend"))]
ODD = [
    "/v1/reservations/",
    "/v1/positions/",
    "/v1/positions/main-17",
    "/v1/positions//release",
    "/v1/positions/main-17/",
    "/v1/positions/main-17/release/",
    "/v1/positions/main-17/release/x",
    "/v1/positions/a/b/release",
    "/v1/positions/main-17/adopt",
    "/v1/positions/main-17/Release",
    "/v1//positions/main-17/release",
    "/v1/portfolios/main/caps",
    "/",
    "",
]


@pytest.fixture(scope="module")
def service(module_database: NewDatabase) -> Iterator[Running]:
    with serving(module_database("sqlite")) as running:
        yield running


def _by_router(service: Running, method: str, path: str) -> tuple[Any, Any]:
    """Return endpoint and path parameters of the first route that matches this method and path."""
    for route in service.app.routes:
        match, child = route.matches({"type": "http", "method": method, "path": path, "headers": []})
        if match is Match.FULL:
            return child["endpoint"], child["path_params"]
    return None, None


@pytest.mark.parametrize("method", ["POST", "GET", "PUT", "DELETE"])
@pytest.mark.parametrize("path", [*HOT, *ODD])
def test_find_when_the_shortcut_knows_a_path_then_it_is_where_the_router_leads(
    service: Running, method: str, path: str
) -> None:
    router = HotPathRouter([route.endpoint for route in service.app.routes if route.name in {*BODIES, "batch"}])
    scope: dict[str, Any] = {"type": "http", "method": method, "path": path}
    found = router.find(scope)
    endpoint, parameters = _by_router(service, method, path)
    if found is not None:
        assert (found, scope["endpoint"], scope["path_params"]) == (endpoint, endpoint, parameters)
    assert (found is not None) == (method == "POST" and path in HOT)


async def test_wait_when_answers_are_late_then_only_those_waits_end_and_the_others_go_on() -> None:
    deadline = Deadline(0.6)
    never: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def soon(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "answer"

    async def wait_for_ever() -> str:
        return await never

    started = time.monotonic()
    late = asyncio.create_task(deadline.wait_for(wait_for_ever()))
    await asyncio.sleep(0.3)
    in_time = asyncio.create_task(deadline.wait_for(soon(0.45)))
    later = asyncio.create_task(deadline.wait_for(soon(5)))
    with pytest.raises(Unavailable, match="same key"):
        await late
    assert await in_time == "answer"
    with pytest.raises(Unavailable):
        await later
    assert 0.9 <= time.monotonic() - started < 3
    assert await deadline.wait_for(soon(0)) == "answer"


async def test_wait_when_the_caller_is_cancelled_then_it_is_cancelled_and_not_late() -> None:
    deadline = Deadline(30)
    waiting = asyncio.create_task(deadline.wait_for(asyncio.sleep(30)))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
