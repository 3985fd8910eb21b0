"""The HTTP calls of each client method, and how their responses are read.

Every public function that returns `Calls` is a generator. It yields a `Call` and receives what the call's `read`
returned; the error that ended a call is thrown into it. Nothing here sends, waits or retries.
"""

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Generic, TypeVar, Unpack
from urllib.parse import quote

from ledger_sizer.client.responses import NotUnderstood, Response, decision_of, results_of, value_of
from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.choices import Status
from ledger_sizer.model.command_base import KEY_LENGTH_MAX
from ledger_sizer.model.commands import AnyCommand, Reserve
from ledger_sizer.model.decisions import Decision, Result
from ledger_sizer.model.domain import Exposure, ExposurePage, HistoryFilters, Page, Position, require_history_filters
from ledger_sizer.model.errors import InvalidRequest, LedgerError, NotFound
from ledger_sizer.model.names import portfolio_name, portfolio_or_desk, split_position_id
from ledger_sizer.model.net import Net
from ledger_sizer.model.overview import Overview, OverviewQuery
from ledger_sizer.model.tags import GivenTags, tags_of
from ledger_sizer.model.times import from_us, time_text, to_us
from ledger_sizer.rules.explain import Explanation
from ledger_sizer.rules.explain import explain as explanation_of
from ledger_sizer.verbs.submission import commands_of, require_command
from ledger_sizer.wire.batch import BATCH_MAX
from ledger_sizer.wire.codec import page_from_json
from ledger_sizer.wire.http_calls import batch_form, http_call_of
from ledger_sizer.wire.net import net_from_json
from ledger_sizer.wire.overviews import overview_from_json, overview_query_to_params
from ledger_sizer.wire.responses import (
    decision_from_json,
    desk_status_from_json,
    exposure_page_from_json,
    heads_from_json,
    position_from_json,
)

T = TypeVar("T")

BODY_BYTES_MAX = 1_000_000
"""Longest body of a batch call. By default the service reads up to 1 MiB."""

_SCOPES_PER_CALL = 10_000

_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True).encode


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One HTTP call. read: parses the response into the result, or raises a `LedgerError`."""

    method: str
    path: str
    read: Callable[[Response], T]
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None

    def options(self) -> dict[str, Any]:
        """Return the arguments of `httpx` besides method and path."""
        content_type = {"Content-Type": "application/json"} if self.body is not None else {}
        # `httpx` would write the name of a string enum's member, not its value.
        query = {name: str.__str__(one) if isinstance(one, str) else one for name, one in self.query.items()}
        return {"params": query or None, "headers": {**self.headers, **content_type}, "content": self.body}


Calls = Generator[Call[Any], Any, T]
"""The calls of one method, which returns a T."""


# Commands.


def run(command: AnyCommand) -> Calls[Decision]:
    """Run one command object and return its decision. The verbs build a command and call this."""
    require_command(command)
    dry_run = isinstance(command, Reserve) and command.dry_run
    if not dry_run and not fits_header(command.key):
        ((part, body),) = _split([command], atomic=False)
        (result,) = yield _batch_call(part, body, atomic=False)
        if isinstance(result, LedgerError):
            raise result
        decision: Decision = result
        return decision
    call = http_call_of(command)
    # A dry run records nothing, so a key that no header can carry is replaced.
    sent = command if fits_header(command.key) else replace(command, key="dry-run")
    found: Decision = yield Call(
        call.method,
        call.path,
        lambda reply: decision_of(reply, sent),
        query=_FULL,
        headers={"Idempotency-Key": sent.key},
        body=_encode(call.body),
    )
    return found if sent is command else Decision(found.record._replace(key=command.key), found.replayed)


def submit(commands: Iterable[AnyCommand], *, atomic: bool = False) -> Calls[list[Result]]:
    """Run the commands of any iterable at once; return their results in the same order. See `Ledger.submit`.

    More than 1,000 independent commands, or more than a megabyte, are sent in several requests. If all requests fail,
    the first error is raised. If some fail, their commands have the error as result. An atomic group is never divided:
    `InvalidRequest` for one of more than 1,000 commands.
    """
    asked = commands_of(commands, atomic=atomic)
    results: list[Result] = []
    errors: list[LedgerError] = []
    parts = list(_split(asked, atomic=atomic))
    for part, body in parts:
        try:
            results += yield _batch_call(part, body, atomic=atomic)
        except LedgerError as error:
            errors.append(error)
            results += [error] * len(part)
    if errors and len(errors) == len(parts):
        raise errors[0]
    return results


def _split(commands: Sequence[AnyCommand], *, atomic: bool) -> Iterator[tuple[Sequence[AnyCommand], str]]:
    """Split the commands so that each part fits one batch call. Yields each part with the body of its call."""
    texts = [_encode(batch_form([command])["commands"][0]) for command in commands]
    start = size = 0
    for number, text in enumerate(texts):
        full = number - start == BATCH_MAX or size + len(text) > BODY_BYTES_MAX
        if full and number > start and not atomic:
            yield commands[start:number], _batch_body(texts[start:number], atomic=atomic)
            start, size = number, 0
        size += len(text) + 1
    if texts:
        yield commands[start:], _batch_body(texts[start:], atomic=atomic)


def _batch_body(texts: Sequence[str], *, atomic: bool) -> str:
    return f'{{"commands":[{",".join(texts)}],"atomic":{_encode(atomic)}}}'


def _batch_call(commands: Sequence[AnyCommand], body: str, *, atomic: bool) -> Call[list[Result]]:
    return Call("POST", "/v1/batch", lambda reply: results_of(reply, commands, atomic=atomic), query=_FULL, body=body)


def fits_header(key: str) -> bool:
    """Whether an HTTP header can carry this key: ASCII, no blank at either end. Other keys are sent in a batch body."""
    return key.isascii() and key.strip() == key


_FULL = {"full": "true"}


# Reads.


def portfolios() -> Calls[list[str]]:
    """Names of all portfolios."""
    names: list[str] = yield Call("GET", "/v1/portfolios", lambda reply: value_of(reply, _names))
    return names


def _names(form: Any) -> list[str]:
    names = form["items"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise NotUnderstood("the portfolios are no list of names")
    return names


def exposure(portfolio: str = "main", as_of: int | datetime | None = None) -> Calls[Exposure]:
    """Cap, held, open, headroom and status of a portfolio and each of its scopes. `NotFound` if there is none.

    The cap of a scope is its own, or else the default of its tag name. `pools` has the guaranteed scopes.
    as_of: a seq or an aware datetime. The exposure is then the sum of all decisions up to it. The whole and up to
    10,000 scopes are of one moment, that of `seq`; where there are more, the others are read after it.
    """
    page: ExposurePage = yield from exposure_page(portfolio, as_of=as_of)
    if page.cursor is None:
        return page.exposure
    page = yield from exposure_page(portfolio, as_of=as_of, limit=_SCOPES_PER_CALL)
    found, scopes = page.exposure, [*page.exposure.scopes]
    while page.cursor is not None:
        seq = None if as_of is None else found.seq
        page = yield from exposure_page(portfolio, as_of=seq, cursor=page.cursor, limit=_SCOPES_PER_CALL)
        scopes += page.exposure.scopes[1:]  # without the whole
    return replace(found, scopes=tuple(scopes))


def exposure_page(
    portfolio: str = "main",
    *,
    as_of: int | datetime | None = None,
    dimension: str | None = None,
    cursor: str | None = None,
    limit: int | None = None,
) -> Calls[ExposurePage]:
    """The whole portfolio and a page of its other scopes by name, where it has very many.

    dimension: only scopes of that tag name. cursor: of the page before. limit: 1 to 10,000; None for 1000.
    """
    path = f"/v1/portfolios/{portfolio_name(portfolio)}/exposure"
    query = query_of(as_of=as_of, dimension=dimension, cursor=cursor, limit=limit)
    found: ExposurePage = yield Call("GET", path, lambda reply: value_of(reply, exposure_page_from_json), query)
    return found


def heads() -> Calls[dict[str, tuple[int, str]]]:
    """The heads of the hash chains now: (seq, hash) by portfolio. A copy kept elsewhere reveals a rewritten history."""
    found: dict[str, tuple[int, str]] = yield Call("GET", "/v1/heads", lambda reply: value_of(reply, heads_from_json))
    return found


def position(position_id: str) -> Calls[Position]:
    """One position by its name. Raises `NotFound`."""
    split_position_id(position_id)
    path = f"/v1/positions/{quote(position_id, safe='')}"
    found: Position = yield Call("GET", path, lambda reply: value_of(reply, position_from_json))
    return found


def positions(
    portfolio: str | None = None,
    *,
    state: str | None = None,
    tags: GivenTags | None = None,
    key: str | None = None,
    cursor: str | None = None,
    limit: int = 100,
) -> Calls[Page[Position]]:
    """Positions, oldest first.

    portfolio: None for all. state: `held`, `open`, `closed`, `released`, `expired`, `live` (held or open), or
    `until_known` (live, with a hold that never ends by time). tags: all must match. key: of a decision about the
    position. cursor: from the previous page. limit: 1 to 1000.
    """
    query = query_of(portfolio=portfolio, state=state, key=key, cursor=cursor, limit=limit)
    if tags:
        query["tag"] = [f"{name}={value}" for name, value in tags_of(tags).pairs]
    page: Page[Position] = yield Call(
        "GET",
        "/v1/positions",
        lambda reply: value_of(reply, lambda form: page_from_json(form, position_from_json)),
        query,
    )
    return page


def history(
    portfolio: str = "main",
    *,
    cursor: str | None = None,
    limit: int = 100,
    **filters: Unpack[HistoryFilters],
) -> Calls[Page[Decision]]:
    """Decisions of a portfolio, newest first unless `ascending`; filters: see `HistoryFilters`.

    cursor: from the previous page; it stays valid while decisions are added or archived. limit: 1 to 1000.
    """
    require_history_filters(filters)
    query = query_of(portfolio=portfolio, cursor=cursor, limit=limit, **filters)
    page: Page[Decision] = yield Call(
        "GET",
        "/v1/decisions",
        lambda reply: value_of(reply, lambda form: page_from_json(form, decision_from_json)),
        {**query, **_FULL},
    )
    return page


def lookup(key: str, portfolio: str = "main") -> Calls[Decision | None]:
    """The decision that a key of this client got; None if it is unused, or another client's. See `Ledger.lookup`."""
    label_text(key, "key", length_max=KEY_LENGTH_MAX)
    portfolio_or_desk(portfolio)

    def read(reply: Response) -> Decision | None:
        found = value_of(reply, lambda form: page_from_json(form, decision_from_json)).items
        if len(found) > 1 or any((one.key, one.portfolio) != (key, portfolio) for one in found):
            raise NotUnderstood(f"the answer to the look-up of key {key!r} is not about it; try again")
        return found[0] if found else None

    decided: Decision | None = yield Call("GET", "/v1/decisions", read, query_of(key=key, portfolio=portfolio) | _FULL)
    return decided


def desk_status() -> Calls[Status]:
    """The desk's status: `halted` and `reducing` count in all portfolios (see `halt` of portfolio `*`)."""
    status: Status = yield Call("GET", "/v1/desk", lambda reply: value_of(reply, desk_status_from_json))
    return status


def decision(seq: int, portfolio: str = "main") -> Calls[Decision]:
    """One decision by its seq in the portfolio's hash chain. Raises `NotFound`."""
    if isinstance(seq, bool) or not isinstance(seq, int):
        raise InvalidRequest(f"seq must be a whole number, got {seq!r}", field="seq")
    path = f"/v1/decisions/{quote(portfolio_or_desk(portfolio), safe='')}/{seq}"
    found: Decision = yield Call("GET", path, lambda reply: value_of(reply, decision_from_json), _FULL)
    return found


def overview(look: OverviewQuery | None = None) -> Calls[Overview]:
    """A consistent snapshot of the ledger: all portfolios this key may see, and one of them in full."""
    query = overview_query_to_params(look or OverviewQuery())
    found: Overview = yield Call("GET", "/v1/overview", lambda reply: value_of(reply, overview_from_json), query)
    return found


def net(portfolio: str = "main") -> Calls[Net]:
    """What a portfolio, or the desk (`*`), has of each coin over all accounts, naked coins first. See `Ledger.net`."""
    path = f"/v1/portfolios/{quote(portfolio_or_desk(portfolio), safe='')}/net"
    found: Net = yield Call("GET", path, lambda reply: value_of(reply, net_from_json))
    return found


def explain(reference: int | str, portfolio: str = "main") -> Calls[Explanation]:
    """Explain a decision, given by its seq in `portfolio`, or by the position_id that it created."""
    if not isinstance(reference, str):
        return explanation_of((yield from decision(reference, portfolio)))
    portfolio, seq = split_position_id(reference)
    found = yield from decision(seq, portfolio)
    if found.position_id != reference:
        raise NotFound(f"no position {reference!r}; decision {seq} of {portfolio!r} made none")
    return explanation_of(found)


def query_of(**query: Any) -> dict[str, Any]:
    """Return the query parameters that are not None, times and booleans as text."""
    return {name: _text(name, value) for name, value in query.items() if value is not None}


_TYPES: Mapping[str, tuple[type, ...]] = {
    "limit": (int,), "as_of": (int, datetime), "since": (datetime,), "until": (datetime,), "ascending": (bool,),
    "full": (bool,),
}  # fmt: skip
"""Types of the parameters that are not text. A query has only texts, so the service cannot tell "1" from 1."""


def _text(name: str, value: Any) -> Any:
    types = _TYPES.get(name, (str,))
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        wanted = " or ".join(one.__name__ for one in types)
        raise InvalidRequest(f"{name} must be {wanted}, got {value!r:.100}", field=name)
    if isinstance(value, datetime):
        return time_text(from_us(to_us(value, name)))
    return str(value).lower() if isinstance(value, bool) else value
