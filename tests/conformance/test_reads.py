"""Every read with good and bad arguments, through every face: the same acceptance, code, field and content."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Adopt, Confirm, Ledger, Release, Reserve, SetCap
from ledger_sizer.client import LedgerClient
from ledger_sizer.model.choices import Outcome, PositionFilter
from ledger_sizer.model.commands import VERBS
from ledger_sizer.model.denials import DENIAL_REASONS
from ledger_sizer.model.domain import HistoryFilters
from ledger_sizer.wire.codec import page_to_json
from ledger_sizer.wire.net import net_to_json
from ledger_sizer.wire.responses import (
    decision_to_json,
    exposure_page_to_json,
    exposure_to_json,
    heads_to_json,
    position_to_json,
)
from tests.conformance.faces import (
    Answer,
    AsyncClientFace,
    ClientFace,
    CommandLineFace,
    Face,
    HttpFace,
    opened_faces,
)
from tests.conformance.forms import Inexpressible, path_part, text_pairs
from tests.conftest import NewDatabase
from tests.support.argument_values import BAD_OF_KIND, MORE_BAD_OF_KIND
from tests.support.interfaces import Name

D = Decimal
READERS = (Face, ClientFace, AsyncClientFace, HttpFace, CommandLineFace)
NOT_WHOLE: list[Any] = [0, -1, True, 1.5, "1", "", 10**30, [], D(1)]
PORTFOLIOS: list[Any] = [
    "main",
    "other",
    "nobody",
    Name.MAIN,
    *BAD_OF_KIND["portfolio"],
    *MORE_BAD_OF_KIND["portfolio"],
]
POSITIONS: list[Any] = ["main-3", "main-99", "nobody-1", "other-2", *BAD_OF_KIND["position"],
                        *MORE_BAD_OF_KIND["position"]]  # fmt: skip
LABELS: list[Any] = ["BTC", "no such ☃", "x" * 128, Name.BTC, "", "a\x00", "x" * 129, 5, "-x"]
TIMES: list[Any] = [datetime(2020, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, 0, 0, 0, 1, timezone(timedelta(hours=5))),
                    datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC), datetime(2026, 1, 1),  # noqa: DTZ001
                    "2026-01-01T00:00:00Z", "yesterday", 5]  # fmt: skip
TAGS: list[Any] = [{}, {"venue": "bybit"}, {"venue": "bybit", "symbol": "BTC"}, {"venue": "a=b&c d☃"},
                   {Name.VENUE: Name.BYBIT}, {"venue": ["okx"]}, {"venue": ("okx", "é")}, {"venue": ["bybit", "okx"]},
                   {"venue": "é", "symbol": "☃"}, {"venue": "e\u0301"}, {f"t{n}": ["x"] * 16 for n in range(16)},
                   *BAD_OF_KIND["tags"], *MORE_BAD_OF_KIND["tags"]]  # fmt: skip
KEYS: list[Any] = ["a/fill", "denied", "no such ☃", "x" * 200, "", "a\x00", "x" * 201, 5, "ledger:mine", " a "]
CURSORS: list[Any] = ["", "yesterday", "1:2:3", "-1", "9" * 19, 5, "1 ", "\u0661"]

READS: dict[str, dict[str, list[Any]]] = {
    "portfolios": {},
    "heads": {},
    "exposure": {"portfolio": PORTFOLIOS, "as_of": [1, 4, 99, 10**18, *TIMES, *NOT_WHOLE]},
    "exposure_page": {
        "portfolio": PORTFOLIOS, "as_of": [1, *TIMES, *NOT_WHOLE], "limit": [1, 2, 10_000, 10_001, *NOT_WHOLE],
        "dimension": ["venue", "nothing", "", "Venue", "portfolio", "a-b", 5, "x" * 33],
        "cursor": ["venue=bybit", "symbol=☃", "portfolio", "x=" + "y" * 129, *CURSORS],
    },
    "position": {"position_id": POSITIONS},
    "positions": {
        "portfolio": PORTFOLIOS, "state": [*PositionFilter.__args__, Name.HELD, "", "sleeping", "HELD", 5],
        "key": KEYS, "tags": TAGS, "limit": [1, 2, 1000, 1001, *NOT_WHOLE], "cursor": ["1:2", "0:0", "1", *CURSORS],
    },
    "history": {
        "portfolio": PORTFOLIOS, "symbol": LABELS, "strategy": LABELS, "command": [*VERBS, "", "fly", 5],
        "outcome": [*Outcome.__args__, "", "maybe", 5], "reason": [*DENIAL_REASONS, "", "because", 5],
        "position_id": POSITIONS, "since": TIMES, "until": TIMES, "ascending": [True, False, "yes", 1],
        "key": KEYS, "actor": [*LABELS, "local", "x" * 300],
        "limit": [1, 2, 1000, 1001, *NOT_WHOLE], "cursor": ["1", "3", "999", "1:2", *CURSORS],
    },
    "net": {"portfolio": [*PORTFOLIOS, "*"]},
    "lookup": {"key": KEYS, "portfolio": PORTFOLIOS},
    "desk_status": {},
    "decision": {"seq": [1, 3, 99, 2**63, *NOT_WHOLE], "portfolio": PORTFOLIOS},
    "explain": {"reference": [1, 3, 99, 2**63, *NOT_WHOLE, *POSITIONS], "portfolio": PORTFOLIOS},
}  # fmt: skip
"""By name: the arguments of a read, with the values to try."""
REQUIRED = {
    "lookup": {"key": "a"},
    "position": {"position_id": "main-3"},
    "decision": {"seq": 3},
    "explain": {"reference": 3},
}
DEFAULTS: dict[str, Any] = {"portfolio": "main"}


@dataclass(frozen=True)
class Question:
    """A read with its arguments."""

    read: str
    arguments: Mapping[str, Any]


def questions() -> Iterator[Question]:
    """Yield every read: plain, and with every value of every argument."""
    for read, parameters in READS.items():
        base = REQUIRED.get(read, {})
        yield Question(read, base)
        for name, values in parameters.items():
            for value in values:
                yield Question(read, {**base, name: value})


# --- one read through one face -----------------------------------------------------------------------------------


def _plain(form: Any) -> Any:
    """Return a form as JSON has it, without what only some faces print: a decision's request, an explanation's text."""
    plain = json.loads(json.dumps(form))
    for one in plain.get("items", [plain]) if isinstance(plain, dict) else []:
        if isinstance(one, dict):
            one.pop("request", None)
            one.pop("text", None)
    return plain


_WRITERS: dict[str, Any] = {
    "portfolios": lambda names: {"items": names, "cursor": None},
    "heads": heads_to_json,
    "exposure": exposure_to_json,
    "exposure_page": exposure_page_to_json,
    "net": net_to_json,
    "position": position_to_json,
    "positions": lambda page: page_to_json(page, position_to_json),
    "history": lambda page: page_to_json(page, decision_to_json),
    "decision": decision_to_json,
    "explain": lambda found: {**found.data},
    "lookup": lambda found: found and decision_to_json(found),
    "desk_status": lambda status: status,
}


def answer_of(face: Face, question: Question) -> Answer:
    """Ask the face. Raises `Inexpressible`."""
    if isinstance(face, HttpFace):
        return _over_http(face, question)
    if isinstance(face, CommandLineFace):
        return _on_the_command_line(face, question)
    try:
        found = face.call(question.read, **question.arguments)
    except Exception as error:  # noqa: BLE001 - compared between faces
        return Answer(getattr(error, "code", type(error).__name__), getattr(error, "field", None))
    return Answer("found", None, _plain(_WRITERS[question.read](found)))


_PATHS = {
    "portfolios": "/v1/portfolios", "heads": "/v1/heads", "exposure": "/v1/portfolios/{portfolio}/exposure",
    "exposure_page": "/v1/portfolios/{portfolio}/exposure", "position": "/v1/positions/{position_id}",
    "positions": "/v1/positions", "history": "/v1/decisions", "decision": "/v1/decisions/{portfolio}/{seq}",
    "desk_status": "/v1/desk", "net": "/v1/portfolios/{portfolio}/net",
}  # fmt: skip


def _over_http(face: HttpFace, question: Question) -> Answer:
    if question.read == "lookup":
        raise Inexpressible("a look-up is the history with a key")
    query = dict(question.arguments)
    if question.read == "explain":
        reference = query.pop("reference")
        whose = "position" if isinstance(reference, str) else "decision"
        path = f"{_PATHS[whose]}/explanation"
        query = {"position_id": reference} if whose == "position" else {**query, "seq": reference}
    else:
        path = _PATHS[question.read]
    for name in ("portfolio", "position_id", "seq"):
        if f"{{{name}}}" in path:
            value = query.pop(name, DEFAULTS.get(name))
            path = path.replace(f"{{{name}}}", path_part(_text(value) if name == "seq" else value))
    parameters: dict[str, Any] = {}
    for name, value in query.items():
        parameters |= {"tag": _tag_texts(value)} if name == "tags" else {name: _text(value, name)}
    if question.read == "decision":
        parameters["full"] = "false"
    if question.read == "exposure":
        parameters["limit"] = 10_000
    response = face.http.get(path, params=parameters)
    form = response.json()
    if not response.is_success:
        return Answer(form["code"], form.get("field"))
    if question.read == "exposure":
        form.pop("cursor")
    if question.read == "desk_status":
        form = form["status"]
    return Answer("found", None, _plain(form))


def _tag_texts(value: Any) -> list[str]:
    if not isinstance(value, Mapping):
        raise Inexpressible("a tag in a query, or on a command line, is two texts")
    texts = [f"{name}={one}" for name, one in text_pairs(value)]
    if any("\ud800" in text for text in texts):
        raise Inexpressible("no UTF-8 has half a surrogate pair")
    return texts


_WHOLE = ("limit", "seq", "as_of", "reference")
_TEXTS = ("as_of", "since", "until", *_WHOLE)


def _text(value: Any, name: str = "seq") -> str:
    """Return a value as a query and a command line have it: everything is text there."""
    if isinstance(value, bool) and name == "ascending":
        return str(value).lower()
    if type(value) is int and name in _WHOLE and (name != "reference" or value >= 0):
        return str(value)
    if isinstance(value, float) and name in _WHOLE and name != "reference":
        return repr(value)
    if isinstance(value, datetime) and name in _TEXTS:
        return value.isoformat()
    if isinstance(value, str) and name not in _WHOLE and name not in _TEXTS and name != "ascending":
        return str.__str__(value)
    if isinstance(value, str) and name == "reference" and not value.isdigit():
        return str.__str__(value)
    raise Inexpressible(f"in a query or on a command line a {type(value).__name__} has the text of another value")


_OPTIONS = {"tags": "tag", "position_id": "position"}


def _on_the_command_line(face: CommandLineFace, question: Question) -> Answer:
    if question.read not in ("exposure", "net", "positions", "history", "explain"):
        raise Inexpressible("the command line has no such read")
    words: list[str] = []
    places: list[str] = []
    for name, value in question.arguments.items():
        flag = f"--{_OPTIONS.get(name, name).replace('_', '-')}"
        if name == "tags":
            words += [f"{flag}={one}" for one in _tag_texts(value)]
        elif name == "reference":
            places = ["--", _text(value, name)]
        elif name == "ascending":
            if _text(value, name) == "true":
                words.append(flag)
        else:
            words.append(f"{flag}={_text(value, name)}")
    code, out, err = face.output(question.read, *words, *places)
    if code:
        problem = json.loads(err)
        return Answer(problem["error"], problem.get("field"))
    return Answer("found", None, _plain(json.loads(out)))


# --- all of them -------------------------------------------------------------------------------------------------


def _fill(ledger: Ledger) -> None:
    market = {"venue": "bybit", "symbol": "BTC", "strategy": "funding"}
    ledger.submit(
        [
            SetCap(key="cap", cap=D("2500.5")),
            SetCap(key="venue", scope="venue=bybit", cap=D(2000)),
            Reserve(key="a", tags=market, ttl_seconds=3600),
            Confirm(key="a/fill", position_id="main-3", quantity=D("0.018"), price=D("50100.5")),
            Reserve(key="b", tags={"venue": "bybit"}, ttl_seconds=3600),
            Reserve(key="denied", tags=market, min_notional_usd=D(2000)),
            Release(key="b/end", position_id="main-5"),
            Adopt(key="c", quantity=D(1), price=D(5), tags={"venue": "a=b&c d☃", "symbol": "☃"}),
            SetCap(key="cap", portfolio="other", cap=D(7)),
            Adopt(key="e", quantity=D(1), price=D(5), tags={"venue": ["okx", "é"], "symbol": ["☃", "BTC"]}),
            Adopt(key="d", portfolio="other", quantity=D(1), price=D(5)),
            Reserve(key="lost", available_balance=D(10), until_known=True),
        ]
    )


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def readers(request: pytest.FixtureRequest, module_database: NewDatabase) -> Iterator[list[Face]]:
    """Every face that reads, all of them on one ledger."""
    url = module_database(request.param)
    with opened_faces(lambda: url, READERS) as found:
        _fill(found[0].behind)
        yield found


def _without_places(answer: Answer, face: Face) -> Answer:
    """Return an answer as a query can give it: its parameter is `tag`, once for each, and has a number, not a name."""
    if not isinstance(face, HttpFace) or answer.field is None or not answer.field.startswith("tag"):
        return answer
    return answer._replace(field="tags")


@pytest.mark.parametrize("read", READS)
def test_read_when_only_the_face_differs_then_acceptance_code_field_and_content_are_equal(
    readers: list[Face], read: str
) -> None:
    found, asked = [], 0
    for question in questions():
        if question.read != read:
            continue
        first, *others = readers
        wanted = answer_of(first, question)
        for face in others:
            try:
                got = answer_of(face, question)
            except Inexpressible:
                continue
            asked += 1
            if _without_places(got, face) != _without_places(wanted, face):
                found.append(f"{question}: {first.name} {wanted!r:.200}, {face.name} {got!r:.200}")
    assert asked
    assert not found, f"{len(found)} of {asked}\n" + "\n".join(found)


@pytest.mark.parametrize("read", READS)
def test_look_at_a_read_when_it_has_an_argument_then_its_values_are_tried(read: str) -> None:
    named = {*inspect.signature(getattr(LedgerClient, read)).parameters} - {"self"}
    if "filters" in named:
        named = named - {"filters"} | HistoryFilters.__annotations__.keys()
    assert named == READS[read].keys()
