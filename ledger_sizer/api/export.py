"""Streams decisions as CSV or NDJSON block by block, so that an export of any length needs one block of memory."""

from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.choices import ExportForm
from ledger_sizer.wire.export import COLUMNS
from ledger_sizer.wire.problems import NotAcceptable

CSV, NDJSON, JSON = "text/csv", "application/x-ndjson", "application/json"

EXPORTS: dict[str, Any] = {
    CSV: {"schema": {"type": "string", "description": f"A head line, then one line each: {', '.join(COLUMNS)}."}},
    NDJSON: {"schema": {"type": "string", "description": "One decision a line, as JSON."}},
}


def negotiate_media_type(accept: str | None) -> str:
    """Negotiate the media type by `Accept`; JSON without the header and on a tie.

    Raises `NotAcceptable` where `Accept` has none of ours.
    """
    if not accept:
        return JSON
    best, best_rank = None, (0.0, 0)
    accepted = [_parse_media_range(part) for part in accept.split(",")]
    for offered in (JSON, CSV, NDJSON):
        ranks = [(specific, quality) for kind, quality in accepted if (specific := _specificity(kind, offered))]
        if not ranks:
            continue
        specific, quality = max(ranks)
        if (quality, specific) > best_rank and quality > 0:
            best, best_rank = offered, (quality, specific)
    if best is None:
        raise NotAcceptable(f"decisions come as {JSON}, {CSV} or {NDJSON}; none is in Accept: {accept[:200]}")
    return best


def _parse_media_range(part: str) -> tuple[str, float]:
    """Parse one entry of `Accept` to its media range and its quality (0 to 1)."""
    kind, *parameters = [text.strip().lower() for text in part.split(";")]
    quality = 1.0
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                quality = min(max(float(parameter[2:]), 0.0), 1.0)
            except ValueError:
                quality = 0.0
    return kind, quality


def _specificity(kind: str, offered: str) -> int:
    """How precisely a media range matches a media type: 3 exactly, 2 as `type/*`, 1 as `*/*`, 0 not at all."""
    if kind == offered:
        return 3
    if kind == f"{offered.partition('/')[0]}/*":
        return 2
    return 1 if kind == "*/*" else 0


async def export_response(
    ledger: Ledger, kind: str, arguments: dict[str, Any], *, cursor: str | None, full: bool
) -> Response:
    """Stream everything from `cursor` on. The first block is read before the status is sent, so its errors set it."""
    form: ExportForm = "csv" if kind == CSV else "ndjson"
    parts = ledger.export(**arguments, form=form, cursor=cursor, full=full)
    first = await run_in_threadpool(next, parts, b"")

    async def lines() -> AsyncIterator[bytes]:
        yield first
        # If the database fails midway, the connection breaks, so that no reader takes a part for the whole.
        while part := await run_in_threadpool(next, parts, b""):
            yield part

    name = f"decisions-{arguments['portfolio']}.{form}"
    headers = {"Cache-Control": "no-store", "Content-Disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(lines(), headers=headers, media_type=kind)
