"""The faces of the ledger, called alike: `send` takes a verb with Python values and returns the face's `Answer`.

A face that cannot carry a value raises `Inexpressible` with the reason. All the reasons stand here.
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
import pytest

from ledger_sizer import AppSettings, Decision, InstrumentInfo, Ledger, LedgerError, Leg
from ledger_sizer.cli import ledger_session
from ledger_sizer.cli import run as run_command_line
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from ledger_sizer.model.arguments import FLAG, DeclaredArgument, to_json
from ledger_sizer.model.command_base import INSTRUMENT, LEGS, MOMENT, SECONDS, TAGS
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.model.details import DETAILS
from ledger_sizer.model.times import time_text
from ledger_sizer.model.units import decimal_text
from ledger_sizer.wire.responses import decision_to_json
from tests.support.command_line import own_logging
from tests.support.interfaces import FAST_RETRIES
from tests.support.services import served

_NO_DRY_RUN = "a batch records what it answers, in every face"


class Inexpressible(Exception):
    """The face has no form for this value, or one that means another value."""


class JsonForm(dict[str, Any]):
    """An object as JSON has it, in place of an instrument or a leg that Python could not even make."""


class Answer(NamedTuple):
    """code: the outcome, or the error's code. field: that the error names. figures: what the decision says."""

    code: str
    field: str | None = None
    figures: Any = None


_FIGURES = ("command", "reason", "position_id", "budget", "quantity", "replayed", "key", "portfolio", "seq")


def _answer_of(result: Any) -> Answer:
    """Return the answer of a Python call: its result, or the error it raised."""
    if isinstance(result, Decision):
        return _answer_of_form(decision_to_json(result))
    if isinstance(result, LedgerError):
        return Answer(result.code, getattr(result, "field", None), _first_use(vars(result)))
    return Answer(type(result).__name__)


def _first_use(form: Mapping[str, Any]) -> Any:
    """Return where the key of a `KeyReused` was used first."""
    found = {name: form[name] for name in ("seq", "position_id") if form.get(name) is not None}
    return found or None


def _answer_of_form(form: Mapping[str, Any]) -> Answer:
    return Answer(form["outcome"], None, {name: form.get(name) for name in _FIGURES})


# --- values on the wire ------------------------------------------------------------------------------------------


def _is_number(argument: DeclaredArgument) -> bool:
    """Whether the argument is a decimal, which is text in JSON."""
    structured = (FLAG, SECONDS, MOMENT, TAGS, LEGS, INSTRUMENT)
    return argument.kind.from_json is not None and argument.kind not in structured


def _json_of(argument: DeclaredArgument, value: Any) -> Any:
    """Return a value as a careful user would write it in JSON."""
    number, kind = _is_number(argument), argument.kind
    if isinstance(value, str) and (number or kind in (SECONDS, MOMENT)):
        raise Inexpressible("JSON has decimals, exact seconds and times as text, so the text means the value")
    if kind in (INSTRUMENT, LEGS) and (forms := [*_json_forms(value)]):
        return forms if kind is LEGS else forms[0]
    if kind is INSTRUMENT and isinstance(value, Mapping):
        raise Inexpressible("an object in JSON is the instrument itself, not something else in its place")
    if isinstance(value, float) and kind is SECONDS:
        raise Inexpressible("a second's fraction is decimal text in JSON, where a float would be inexact")
    if isinstance(value, Decimal):
        return _number_text(value)
    if number and type(value) is int:
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat() if value.tzinfo is None else _time_text(value)
    if isinstance(value, InstrumentInfo | Leg):
        return to_json(value)
    if kind is LEGS and isinstance(value, Sequence) and any(isinstance(one, Mapping) for one in value):
        raise Inexpressible("an object in JSON is a leg itself, not something else in its place")
    if kind is LEGS and isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain_json(one) if not isinstance(one, Leg) else to_json(one) for one in value]
    return _plain_json(value)


def _json_forms(value: Any) -> Iterator[Any]:
    """Yield the objects of a value that is a `JsonForm`, or a list of some."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, JsonForm):
            yield {
                name: _number_text(part) if isinstance(part, Decimal) else _plain_json(part)
                for name, part in one.items()
            }


def _number_text(value: Decimal) -> str:
    """Return the number as the client writes it; with an exponent where it would have very many digits."""
    return decimal_text(value) if value.is_finite() and abs(value.adjusted()) < 100 else str(value)


def _time_text(value: datetime) -> str:
    try:
        return time_text(value)
    except OverflowError:
        return value.isoformat()  # a time before the year 1, or after 9999, in UTC


def _plain_json(value: Any) -> Any:
    """Return a value with the type that JSON has for it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise Inexpressible("a name in JSON is text")
        return {str.__str__(name): _plain_json(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(one) for one in value]
    raise Inexpressible(f"JSON has no {type(value).__name__}")


def _body_of(verb: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    declared = {one.name: one for one in COMMANDS[verb].arguments}
    return {name: _json_of(declared[name], value) for name, value in arguments.items()}


# --- faces -------------------------------------------------------------------------------------------------------


class Face:
    """One face, on a database of its own. behind: the embedded ledger that decides."""

    name = "ledger"
    effect_like = "ledger"
    """Name of the face that records the same."""

    def __init__(self, behind: Ledger, url: str = "") -> None:
        self.behind = behind
        self.url = url

    def send(self, verb: str, **arguments: Any) -> Answer:
        """Send one command and return the answer."""
        _require_values(arguments)
        return _answered(lambda: self.call(verb, **arguments))

    def call(self, name: str, *positional: Any, **arguments: Any) -> Any:
        """Call a method of the face's Python interface; only faces that have one."""
        return getattr(self.behind, name)(*positional, **arguments)

    def close(self) -> None:
        """Close what the face itself opened."""


def _require_values(arguments: Mapping[str, Any]) -> None:
    for value in arguments.values():
        if any(isinstance(one, JsonForm) for one in (value if isinstance(value, list) else [value])):
            raise Inexpressible("Python has the instrument or the leg itself, which refuses this when it is made")


def _answered(call: Callable[[], Any]) -> Answer:
    try:
        return _answer_of(call())
    except (Inexpressible, pytest.fail.Exception):
        raise
    except Exception as error:  # noqa: BLE001 - compared between faces
        return _answer_of(error)


class AsyncFace(Face):
    """The embedded ledger's `..._async`."""

    name = "ledger_async"

    def __init__(self, behind: Ledger, url: str = "") -> None:
        super().__init__(behind, url)
        self._runner = asyncio.Runner()

    def call(self, name: str, *positional: Any, **arguments: Any) -> Any:
        """Await the async method."""
        return self._runner.run(self._awaited(name, positional, arguments))

    async def _awaited(self, name: str, positional: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
        return await getattr(self.behind, f"{name}_async")(*positional, **arguments)

    def close(self) -> None:
        """Close the loop."""
        self._runner.close()


class GroupFace(Face):
    """An atomic group of one command. What it records of a denial is a group's."""

    name = "group"
    effect_like = "group"

    def send(self, verb: str, **arguments: Any) -> Answer:
        """Submit the command as the only one of a group."""
        if arguments.get("dry_run") is True:
            raise Inexpressible(_NO_DRY_RUN)
        _require_values(arguments)
        return _answered(lambda: self.call("submit", [COMMANDS[verb](**arguments)], atomic=True)[0])


class ClientFace(Face):
    """`LedgerClient`."""

    name = "client"

    def __init__(self, behind: Ledger, url: str) -> None:
        super().__init__(behind, url)
        self.client = LedgerClient(url, patience=FAST_RETRIES)

    def call(self, name: str, *positional: Any, **arguments: Any) -> Any:
        """Call the client's method."""
        return getattr(self.client, name)(*positional, **arguments)

    def close(self) -> None:
        """Close the client."""
        self.client.close()


class AsyncClientFace(Face):
    """`AsyncLedgerClient`, in one event loop."""

    name = "async_client"

    def __init__(self, behind: Ledger, url: str) -> None:
        super().__init__(behind, url)
        self._runner = asyncio.Runner()
        self.client = AsyncLedgerClient(url, patience=FAST_RETRIES)

    def call(self, name: str, *positional: Any, **arguments: Any) -> Any:
        """Await the client's method."""
        return self._runner.run(getattr(self.client, name)(*positional, **arguments))

    def close(self) -> None:
        """Close the client and its loop."""
        self._runner.run(self.client.close())
        self._runner.close()


class ClientGroupFace(ClientFace, GroupFace):
    """An atomic group of one command, through the client."""

    name = "client_group"


class HttpFace(Face):
    """One HTTP call for each command, written by hand."""

    name = "http"

    def __init__(self, behind: Ledger, url: str) -> None:
        super().__init__(behind, url)
        self.http = httpx.Client(base_url=url, timeout=30)

    def close(self) -> None:
        """Close the connection."""
        self.http.close()

    def send(self, verb: str, **arguments: Any) -> Answer:
        """Send the command's own call."""
        command, key = COMMANDS[verb], arguments.pop("key")
        path = command.path
        for name in ("position_id", "portfolio"):
            if f"{{{name}}}" in path:
                path = path.replace(f"{{{name}}}", path_part(arguments.pop(name)))
        response = self.http.request(
            command.method, path, headers=_headers(key), content=_encoded(_body_of(verb, arguments))
        )
        return http_answer(response)


def path_part(value: Any) -> str:
    """Return a value as one part of a path. Raises `Inexpressible`."""
    if not isinstance(value, str):
        raise Inexpressible("a path is text")
    text = str.__str__(value)
    if not text or "/" in text or text in (".", ".."):
        raise Inexpressible("an empty part, a slash or dots make another path")
    return quote(text, safe="")


def _headers(key: Any) -> dict[str, bytes | str]:
    if not isinstance(key, str):
        raise Inexpressible("a header is text")
    if not key or key != key.strip() or not key.isprintable():
        raise Inexpressible("a header has no control characters and no blanks at its ends, and an empty one is none")
    return {"Idempotency-Key": str.__str__(key).encode(), "Content-Type": "application/json"}  # type: ignore[dict-item]


def _encoded(body: Any) -> bytes:
    try:
        return json.dumps(body).encode()
    except ValueError:
        raise Inexpressible("no JSON encoder writes this") from None


def http_answer(response: httpx.Response) -> Answer:
    """Return the answer in a response: a decision, or a problem."""
    form = response.json()
    return _answer_of_form(form) if response.is_success else _answer_of_problem(form)


def _answer_of_problem(problem: Mapping[str, Any]) -> Answer:
    if "decision" in problem:
        return _answer_of_form(problem["decision"])
    return Answer(problem["code"], problem.get("field"), _first_use(problem))


class BatchFace(HttpFace):
    """A batch of one command, independent."""

    name = "batch"
    atomic = False

    def send(self, verb: str, **arguments: Any) -> Answer:
        """Send the command as the only one of a batch."""
        if arguments.get("dry_run") is True:
            raise Inexpressible(_NO_DRY_RUN)
        item = {"command": verb, **_body_of(verb, arguments)}
        response = self.http.post("/v1/batch", content=_encoded({"commands": [item], "atomic": self.atomic}),
                                  headers={"Content-Type": "application/json"})  # fmt: skip
        form = response.json()
        if "results" not in form:
            return _of_item(_answer_of_problem(form))
        (result,) = form["results"]
        return _of_item(_answer_of_problem(result["problem"]) if "problem" in result
                        else _answer_of_form(result["decision"]))  # fmt: skip


def _of_item(answer: Answer) -> Answer:
    """Name the field as the command has it: a batch names the item too."""
    field = answer.field and answer.field.removeprefix("commands.0.")
    return answer._replace(field=field)


class AtomicFace(BatchFace):
    """A batch of one command, atomic."""

    name = "atomic"
    atomic = True
    effect_like = "group"


class CommandLineFace(Face):
    """The command line, in this process. Every command line gets the one open ledger, so that many are fast."""

    name = "command_line"

    def send(self, verb: str, **arguments: Any) -> Answer:
        """Run the command line."""
        return self.run(*_command_line_of(verb, arguments))

    def run(self, *words: str) -> Answer:
        """Run these words with `--json`, and return the answer on standard output or standard error."""
        code, out, err = self.output(*words)
        if code in (0, 3):
            return _answer_of_form(json.loads(out))
        problem = json.loads(err)
        return Answer(problem["error"], problem.get("field"), _first_use(problem))

    def output(self, *words: str) -> tuple[int, str, str]:
        """Run these words with `--json`, and return exit code, standard output and standard error."""
        out, err = io.StringIO(), io.StringIO()
        command, *rest = words
        groups = [command, rest.pop(0)] if command == "caps" else [command]
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(ledger_session, "ledger_at", self._ledger_at)
            code = run_command_line([*groups, "--json", *rest])
        return code, out.getvalue(), err.getvalue()

    @contextmanager
    def _ledger_at(self, _url: str | None, **_create: bool) -> Iterator[Ledger]:
        yield self.behind


_POSITIONAL = {"set_cap": ("portfolio", "cap")}


def _command_line_of(verb: str, arguments: Mapping[str, Any]) -> list[str]:
    given = {one.name: (one, arguments[one.name]) for one in COMMANDS[verb].arguments if one.name in arguments}
    positional = _POSITIONAL.get(verb, ("position_id",))
    words = ["caps", "set"] if verb == "set_cap" else [verb]
    if verb == "set_cap" and arguments.get("cap", 0) is None:
        words, positional = ["caps", "remove"], ("portfolio",)
        del given["cap"]
    options = [word for name, (one, value) in given.items() if name not in positional for word in _option(one, value)]
    places = [_word(*given[name]) for name in positional if name in given]
    return [*words, *options, "--", *places]


def _option(argument: DeclaredArgument, value: Any) -> list[str]:
    """Return the option that gives this value; with `=`, so that the value may begin with a dash."""
    flag = f"--{argument.name.replace('_', '-')}"
    if value is None:
        if argument.required or not argument.optional:
            raise Inexpressible("an option that is left out has no value None, but its default")
        return []
    if argument.kind is FLAG:
        if not isinstance(value, bool) or (not value and argument.default is not False):
            raise Inexpressible("a flag is given, or left out, which is its default")
        return [flag] if value else []
    if argument.kind in (TAGS, DETAILS):
        if not isinstance(value, Mapping) or not all(isinstance(one, str) for pair in value.items() for one in pair):
            raise Inexpressible("a tag and a detail on the command line are two texts")
        if not value and argument.optional:
            raise Inexpressible("without an option it is left out, not empty")
        option = "--tag" if argument.kind is TAGS else "--detail"
        return [f"{option}={str.__str__(name)}={str.__str__(one)}" for name, one in value.items()]
    if forms := [*_json_forms(value)]:
        return [f"{'--leg' if argument.kind is LEGS else flag}={json.dumps(form)}" for form in forms]
    if argument.kind is LEGS:
        if not isinstance(value, Sequence) or not value or not all(isinstance(leg, Leg) for leg in value):
            raise Inexpressible("every --leg is a leg, and without one nothing is given")
        return [f"--leg={json.dumps(to_json(leg))}" for leg in value]
    return [f"{flag}={_word(argument, value)}"]


def _word(argument: DeclaredArgument, value: Any) -> str:
    """Return a value as one word."""
    if isinstance(value, InstrumentInfo):
        return json.dumps({name: one for name, one in to_json(value).items() if one is not None})
    if argument.kind is MOMENT and isinstance(value, datetime):
        return value.isoformat()
    if argument.kind is SECONDS and isinstance(value, float):
        return repr(value)
    number = _is_number(argument) or argument.kind is SECONDS
    if number and isinstance(value, Decimal | int) and not isinstance(value, bool):
        return _digits(value)
    if isinstance(value, str) and not number and argument.kind is not MOMENT:
        return str.__str__(value)
    raise Inexpressible(f"on a command line everything is text; a {type(value).__name__} has the text of another value")


def _digits(value: Decimal | int) -> str:
    try:
        return str(value)
    except ValueError:
        raise Inexpressible("Python writes no whole number of so many digits") from None


FACES: tuple[type[Face], ...] = (
    Face, GroupFace, AsyncFace, ClientFace, ClientGroupFace, AsyncClientFace, HttpFace, BatchFace, AtomicFace,
    CommandLineFace,
)  # fmt: skip
"""All of them. The first is what the others are compared with."""


@contextmanager
def opened_faces(new_url: Callable[[], str], wanted: Sequence[type[Face]] = FACES) -> Iterator[list[Face]]:
    """Open these faces, each on a new database, or all on one where `new_url` returns the same."""
    settings = AppSettings()
    with ExitStack() as stack:
        stack.enter_context(own_logging())
        faces: list[Face] = []
        for kind in wanted:
            url = new_url()
            if issubclass(kind, ClientFace | AsyncClientFace | HttpFace):
                service = stack.enter_context(served(url, settings=settings))
                face = kind(service.ledger, service.url)
            else:
                face = kind(stack.enter_context(Ledger.open(url, settings=settings)))
            stack.callback(face.close)
            faces.append(face)
        yield faces
