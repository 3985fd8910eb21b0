"""The faces of the ledger, called alike: `send` takes a verb with Python values and returns the face's `Answer`.

A face that cannot carry a value raises `Inexpressible` (see `forms`).
"""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from typing import Any, NamedTuple

import httpx
import pytest

from ledger_sizer import AppSettings, Decision, Ledger, LedgerError
from ledger_sizer.cli import ledger_session
from ledger_sizer.cli import run as run_command_line
from ledger_sizer.client import AsyncLedgerClient, LedgerClient
from ledger_sizer.model.commands import COMMANDS
from ledger_sizer.wire.responses import decision_to_json
from tests.conformance.forms import Inexpressible, JsonForm, body_of, command_line_of, encoded, headers, path_part
from tests.support.command_line import own_logging
from tests.support.interfaces import FAST_RETRIES
from tests.support.services import served

_NO_DRY_RUN = "a batch records what it answers, in every face"


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
            command.method, path, headers=headers(key), content=encoded(body_of(verb, arguments))
        )
        return http_answer(response)


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
        item = {"command": verb, **body_of(verb, arguments)}
        response = self.http.post("/v1/batch", content=encoded({"commands": [item], "atomic": self.atomic}),
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
        return self.run(*command_line_of(verb, arguments))

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
