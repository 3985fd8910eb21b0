"""The HTTP calls that go over many rows: verify, sweep, settle, release_all, export (see `endpoints`)."""

import json
from collections.abc import Callable, Collection
from datetime import datetime
from functools import partial
from typing import Any, TypeVar, Unpack, get_args

from ledger_sizer.client.endpoints import Call, Calls, fits_header, query_of
from ledger_sizer.client.responses import NotUnderstood, Response, value_of
from ledger_sizer.model.arguments import to_json
from ledger_sizer.model.choices import ExportForm
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import HistoryFilters, Page, require_history_filters
from ledger_sizer.model.errors import InvalidRequest, LedgerError, NotFound
from ledger_sizer.model.names import portfolio_or_desk
from ledger_sizer.model.release_all import ReleaseAll
from ledger_sizer.model.settle import GivenBook, Settle
from ledger_sizer.model.tags import GivenTags
from ledger_sizer.model.verification import VerifyReport
from ledger_sizer.wire.codec import page_from_json
from ledger_sizer.wire.responses import decision_from_json
from ledger_sizer.wire.verification import REPORT

T = TypeVar("T")

_MEDIA_TYPES: dict[str, str] = {"csv": "text/csv", "ndjson": "application/x-ndjson"}


def verify(portfolio: str | None = None) -> Calls[VerifyReport]:
    """Let the service check its audit chains from their start, and every counter. See `Ledger.verify`.

    portfolio: None for all that this key may see. It reads all decisions, which may take minutes. `Busy` while the
    service verifies for another caller.
    """
    report: VerifyReport = yield from _over_portfolios("/v1/verify", portfolio, REPORT.from_json)
    return report


def sweep(portfolio: str | None = None) -> Calls[int]:
    """Expire the overdue holds of one portfolio, or of all that this key may see. Needs a key that may trade.

    Returns how many were freed, without those of a call whose answer was lost.
    """
    freed, more = 0, True
    while more:
        now_freed, more = yield from _over_portfolios("/v1/sweep", portfolio, _swept)
        freed += now_freed
    return freed


def _swept(form: Any) -> tuple[int, bool]:
    freed, more = form["freed"], form["more"]
    if type(freed) is not int or type(more) is not bool:
        raise TypeError(f"freed {freed!r}, more {more!r}")
    return freed, more


def _over_portfolios(path: str, portfolio: str | None, convert: Callable[[Any], T]) -> Calls[T]:
    body = json.dumps({} if portfolio is None else {"portfolio": portfolio_or_desk(portfolio)})
    try:
        found: T = yield Call("POST", path, lambda reply: value_of(reply, convert), body=body)
    except LedgerError as error:
        if isinstance(error, NotFound) and path in str(error):
            raise NotFound(f"this service has no {path}: it is older than this client, upgrade it") from None
        raise
    return found


def settle(
    tags: GivenTags,
    book: GivenBook,
    resting: Collection[str] = (),
    portfolio: str = "main",
    *,
    as_of: datetime | None = None,
    reference: str | None = None,
) -> Calls[list[Decision]]:
    """Bring what the ledger has under these tags in line with the bot's book. See `Ledger.settle`.

    Where an answer was lost it is asked again: what was settled by then is not among the decisions.
    """
    request = Settle(tags, book, resting, portfolio, as_of, reference)
    form = {name: value for name, value in to_json(request).items() if name != "portfolio" and value is not None}
    path = f"/v1/portfolios/{request.portfolio}/settle"
    found: list[Decision] = yield Call("POST", path, _settled, query_of(full=True), body=json.dumps(form))
    return found


def _settled(reply: Response) -> list[Decision]:
    return value_of(reply, lambda form: [decision_from_json(one) for one in form["items"]])


def release_all(
    portfolio: str = "main",
    *,
    key: str,
    tags: GivenTags,
    held_only: bool = True,
    unknown: bool = False,
    reference: str | None = None,
) -> Calls[list[Decision]]:
    """Free the holds of all live positions that carry all these tags; return the decisions. See `Ledger.release_all`.

    Up to 1,000 are freed in each call. Asked again with the same key it frees what is left.
    """
    request = ReleaseAll(
        key=key, portfolio=portfolio, tags=tags, held_only=held_only, unknown=unknown, reference=reference
    )
    form = {name: value for name, value in to_json(request).items() if name != "portfolio" and value is not None}
    headers = {}
    if fits_header(key):
        headers["Idempotency-Key"] = key
    else:
        form["key"] = key
    found: list[Decision] = []
    cursor: str | None = None
    while True:
        body = json.dumps(form if cursor is None else {**form, "cursor": cursor})
        path = f"/v1/portfolios/{request.portfolio}/release_all"
        page: Page[Decision] = yield Call("POST", path, _released, query_of(full=True), headers=headers, body=body)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


def _released(reply: Response) -> Page[Decision]:
    return value_of(reply, lambda form: page_from_json(form, decision_from_json))


def export(
    portfolio: str = "main",
    form: ExportForm = "ndjson",
    *,
    full: bool = True,
    cursor: str | None = None,
    **filters: Unpack[HistoryFilters],
) -> Calls[None]:
    """What `history` pages through from the cursor on, as CSV or NDJSON, in parts: the bytes of `Ledger.export`.

    full: include every hashed field, so that a reader of the export can recompute the chain. Raises `Unavailable`
    where the connection breaks midway: what came so far is a part, and is not sent again.
    """
    if form not in get_args(ExportForm):
        raise InvalidRequest(f"form must be one of {', '.join(get_args(ExportForm))}, got {form!r}", field="form")
    require_history_filters(filters)
    query = query_of(portfolio=portfolio, cursor=cursor, full=full, **filters)
    media_type = _MEDIA_TYPES[form]
    return _only(Call("GET", "/v1/decisions", partial(_require, media_type), query, headers={"Accept": media_type}))


def _only(call: Call[None]) -> Calls[None]:
    """Make one call. Its arguments are checked before, so that their errors are raised at once."""
    yield call


def _require(media_type: str, reply: Response) -> None:
    """Raise the error of a response that does not begin an export of this type. The body of one that does is unread."""
    if reply.status != 200:
        value_of(reply, lambda form: form)
    kind = reply.headers.get("content-type", "").partition(";")[0].strip()
    if kind != media_type:
        raise NotUnderstood(f"the answer was not understood (it is no {media_type} but {kind[:60]!r})")
