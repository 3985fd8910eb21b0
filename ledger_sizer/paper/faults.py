"""Injects faults into responses: rate limits, outages, timeouts, truncated, empty and lost answers."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from starlette.responses import Response

from ledger_sizer.paper.accounts import RequestRefused
from ledger_sizer.paper.http import Dialect, ExchangeRequest, ExchangeResponse

FaultKind = Literal["rate_limit", "outage", "forbidden", "timeout", "half", "hollow", "lost_answer"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(slots=True)
class Fault:
    """A fault of the next `times` requests (None: until cleared) whose path contains `path`; method: '' for all.

    rate_limit, outage, forbidden (to this key): the exchange's own error; the request is not executed. timeout: no
    answer, and after `seconds` the connection ends; not executed. half: executed, the answer is cut in the middle.
    hollow: executed, the answer is valid JSON without its rows. lost_answer: executed, and after `seconds` the
    connection ends without an answer.
    """

    kind: FaultKind
    path: str = ""
    times: int | None = 1
    seconds: float = 5.0
    method: str = ""


class Faults:
    """The pending faults of one venue, used in the order in which they were injected."""

    def __init__(self) -> None:
        self.pending: list[Fault] = []

    def inject(self, fault: Fault) -> None:
        """Add a fault. Raises `RequestRefused` for an unknown kind."""
        if fault.kind not in FAULT_KINDS:
            raise RequestRefused("bad_request", f"no fault {fault.kind!r}; there are {', '.join(FAULT_KINDS)}")
        self.pending.append(fault)

    def clear(self) -> None:
        """Remove all pending faults."""
        self.pending.clear()

    def next_for(self, method: str, path: str) -> Fault | None:
        """Return the fault for a request, and count it as used; None without one."""
        for fault in self.pending:
            if fault.path in path and fault.method in ("", method):
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.pending.remove(fault)
                return fault
        return None


class LostConnection(Exception):
    """The connection must end without an answer."""


async def respond_with_fault(
    dialect: Dialect, request: ExchangeRequest, fault: Fault | None, handle: Callable[[], ExchangeResponse]
) -> Response:
    """Execute a request with `handle`, and return its response as the fault changes it. Raises `LostConnection`."""
    kind = fault.kind if fault else None
    if kind in ("rate_limit", "outage", "forbidden"):
        return _response(dialect.refusal(RequestRefused(str(kind), "injected"), request.path))
    if fault and kind == "timeout":
        await asyncio.sleep(fault.seconds)
        raise LostConnection
    response = handle()
    if fault and kind == "lost_answer":
        await asyncio.sleep(fault.seconds)
        raise LostConnection
    if kind == "half":
        text = json.dumps(response.document)
        return Response(text[: len(text) // 2], response.status, media_type="application/json")
    if kind == "hollow":
        return _response(ExchangeResponse(response.status, _hollow(response.document)))
    return _response(response)


def _hollow(document: Any) -> Any:
    """Return the document without lists and objects."""
    if isinstance(document, dict):
        return {name: value for name, value in document.items() if not isinstance(value, dict | list)}
    return {}


def _response(response: ExchangeResponse) -> Response:
    return Response(json.dumps(response.document), response.status, media_type="application/json")
