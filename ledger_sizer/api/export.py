"""Decisions as CSV and NDJSON, streamed block by block, so that a history of any length costs one block of memory."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.wire.export import COLUMNS, ExportForm
from ledger_sizer.wire.problems import NotAcceptable

CSV, NDJSON, JSON = "text/csv", "application/x-ndjson", "application/json"

EXPORTS: dict[str, Any] = {
    CSV: {"schema": {"type": "string", "description": f"A head line, then one line each: {', '.join(COLUMNS)}."}},
    NDJSON: {"schema": {"type": "string", "description": "One decision a line, as JSON."}},
}


def chosen_type(accept: str | None) -> str:
    """The media type to answer in: of those we have, the one that `Accept` wants most; JSON on a tie.

    Raises `NotAcceptable` where it wants none.
    """
    if not accept:
        return JSON
    best, best_rank = None, (0.0, 0)
    wanted = [_wish(part) for part in accept.split(",")]
    for ours in (JSON, CSV, NDJSON):
        ranks = [(specific, quality) for kind, quality in wanted if (specific := _matches(kind, ours))]
        if not ranks:
            continue
        specific, quality = max(ranks)
        if (quality, specific) > best_rank and quality > 0:
            best, best_rank = ours, (quality, specific)
    if best is None:
        raise NotAcceptable(f"decisions come as {JSON}, {CSV} or {NDJSON}; none is in Accept: {accept[:200]}")
    return best


def _wish(part: str) -> tuple[str, float]:
    kind, *parameters = [text.strip().lower() for text in part.split(";")]
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return kind, quality


def _matches(kind: str, ours: str) -> int:
    """How precisely a media range names ours: 3 exactly, 2 its family, 1 anything, 0 not."""
    if kind == ours:
        return 3
    if kind == f"{ours.partition('/')[0]}/*":
        return 2
    return 1 if kind == "*/*" else 0


async def export_response(
    ledger: Ledger, kind: str, arguments: dict[str, Any], *, cursor: str | None, full: bool
) -> Response:
    """Stream everything from `cursor` on. The first block is read before the head is sent, so that errors keep it."""
    form: ExportForm = "csv" if kind == CSV else "ndjson"
    parts = ledger.export(**arguments, form=form, cursor=cursor, full=full)
    first = await run_in_threadpool(next, parts, b"")

    async def lines() -> AsyncIterator[bytes]:
        yield first
        # A database lost in the middle breaks the connection off, so that no reader takes a part for the whole.
        while part := await run_in_threadpool(next, parts, b""):
            yield part

    name = f"decisions-{arguments['portfolio']}.{form}"
    headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines(), headers=headers, media_type=kind)
