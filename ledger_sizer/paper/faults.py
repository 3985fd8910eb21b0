"""Answers that go wrong on demand: rate limits, outages, silence, half an answer, an answer that got lost."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from starlette.responses import Response

from ledger_sizer.paper.exchange import RequestRefused
from ledger_sizer.paper.http import Dialect, ExchangeRequest, ExchangeResponse

FaultKind = Literal["rate_limit", "outage", "timeout", "half", "hollow", "lost_answer"]
FAULT_KINDS: tuple[FaultKind, ...] = get_args(FaultKind)


@dataclass(slots=True)
class Fault:
    """What goes wrong with the next `times` requests (None: until cleared) whose path contains `path`.

    rate_limit, outage: the exchange's own refusal; nothing is done. timeout: silence for `seconds`; nothing is done.
    half: the request is done, its answer breaks off in the middle. hollow: it is done, the answer is whole JSON
    without the rows it should carry. lost_answer: it is done, and after `seconds` the connection ends without a word.
    """

    kind: FaultKind
    path: str = ""
    times: int | None = 1
    seconds: float = 5.0


class Faults:
    """The faults of one venue, used up in the order they were injected."""

    def __init__(self) -> None:
        self.waiting: list[Fault] = []

    def inject(self, fault: Fault) -> None:
        """Add one. Raises `RequestRefused` for a kind there is not."""
        if fault.kind not in FAULT_KINDS:
            raise RequestRefused("bad_request", f"no fault {fault.kind!r}; there are {', '.join(FAULT_KINDS)}")
        self.waiting.append(fault)

    def clear(self) -> None:
        """Forget those that wait."""
        self.waiting.clear()

    def next_for(self, path: str) -> Fault | None:
        """The fault that strikes a request to `path`, if one does."""
        for fault in self.waiting:
            if fault.path in path:
                if fault.times is not None:
                    fault.times -= 1
                    if fault.times <= 0:
                        self.waiting.remove(fault)
                return fault
        return None


class LostConnection(Exception):
    """The connection is to end without an answer."""


async def answered(
    dialect: Dialect, call: ExchangeRequest, fault: Fault | None, answer: Callable[[], ExchangeResponse]
) -> Response:
    """The response to a call that `answer` does, as the fault lets it through. Raises `LostConnection`."""
    kind = fault.kind if fault else None
    if kind in ("rate_limit", "outage"):
        return _response(dialect.refusal(RequestRefused(str(kind), "injected"), call.path))
    if fault and kind == "timeout":
        await asyncio.sleep(fault.seconds)
        raise LostConnection
    given = answer()
    if fault and kind == "lost_answer":
        await asyncio.sleep(fault.seconds)
        raise LostConnection
    if kind == "half":
        text = json.dumps(given.document)
        return Response(text[: len(text) // 2], given.status, media_type="application/json")
    if kind == "hollow":
        return _response(ExchangeResponse(given.status, _hollow(given.document)))
    return _response(given)


def _hollow(document: Any) -> Any:
    """The document without anything that holds rows."""
    if isinstance(document, dict):
        return {name: value for name, value in document.items() if not isinstance(value, dict | list)}
    return {}


def _response(answer: ExchangeResponse) -> Response:
    return Response(json.dumps(answer.document), answer.status, media_type="application/json")
