"""The two faces of the client: blocking and awaitable.

They differ in how they send bytes and how they wait, which is all that stands below twice. What is sent, when it is
sent again and what an answer means stands once, in `calls`, `patience` and `answers`.
"""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from pydantic import SecretStr

from ledger_sizer.client import endpoints, reconciliation
from ledger_sizer.client.endpoints import Call, Calls
from ledger_sizer.client.responses import ConnectionLost, Response
from ledger_sizer.client.retry import RetryPolicy, Steps, Wait, retrying
from ledger_sizer.model import commands
from ledger_sizer.model.errors import Closed, InvalidRequest
from ledger_sizer.verbs.hold import AsyncHold, Hold
from ledger_sizer.verbs.methods import verb, verb_async

P = ParamSpec("P")
T = TypeVar("T")

BASE_URL = "http://127.0.0.1:8321"
TIMEOUT_SECONDS = 10.0
CONNECTIONS_MAX = 100

_LOST = (httpx.TransportError, httpx.DecodingError)


class _Face:
    """What both faces are made of: where the service is, and how patient to be."""

    def __init__(
        self,
        base_url: str,
        patience: RetryPolicy | None,
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.base_url = _checked_url(base_url)
        self.patience = patience or RetryPolicy()
        self._clock = clock
        self._chance = chance

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"

    def _options(self, api_key: str | SecretStr | None, timeout_seconds: float) -> dict[str, Any]:
        """What both kinds of `httpx` client are made with. Not kept: the key stands in the client's headers only."""
        secret = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        return {
            "base_url": self.base_url,
            "headers": {"Accept": "application/json", **({"Authorization": f"Bearer {secret}"} if secret else {})},
            "timeout": httpx.Timeout(timeout_seconds),
            "limits": httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            # A proxy named by the environment must not get to see, or to answer, what concerns the ledger.
            "trust_env": False,
            "follow_redirects": False,
        }

    def _conversation(self, calls: Calls[T]) -> Steps[T]:
        return retrying(calls, self.patience, clock=self._clock, chance=self._chance)


def _checked_url(base_url: str) -> str:
    try:
        url = httpx.URL(base_url)
    except (httpx.InvalidURL, TypeError) as error:
        raise InvalidRequest(f"base_url is no URL: {error}", field="base_url") from None
    if url.userinfo:
        raise InvalidRequest("base_url must not carry a user or password; give api_key=...", field="base_url")
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        raise InvalidRequest(f"base_url must look like {BASE_URL!r}, got {base_url!r}", field="base_url")
    return str(url).rstrip("/")


def _asks(make: Callable[P, Calls[T]]) -> Callable[Concatenate["LedgerClient", P], T]:
    """A blocking method with the arguments of `make`."""

    def method(self: "LedgerClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._carry_out(self._conversation(make(*args, **kwargs)))

    return _dressed(method, make)


def _asks_async(make: Callable[P, Calls[T]]) -> Callable[Concatenate["AsyncLedgerClient", P], Coroutine[Any, Any, T]]:
    """An awaitable method with the arguments of `make`."""

    async def method(self: "AsyncLedgerClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._carry_out(self._conversation(make(*args, **kwargs)))

    return _dressed(method, make)


_M = TypeVar("_M", bound=Callable[..., Any])


def _dressed(method: _M, make: Callable[..., Any]) -> _M:
    """Give the method the name, documentation and signature of the function it was made from."""
    method.__name__ = method.__qualname__ = make.__name__
    method.__doc__ = make.__doc__
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [this, *inspect.signature(make).parameters.values()]
    )
    return method


class LedgerClient(_Face):
    """The ledger over HTTP: the verbs, arguments, results and exceptions of the embedded `Ledger`.

        with LedgerClient("https://ledger.example", api_key=...) as ledger:
            decision = ledger.reserve(key="cycle-17/BTC", signal_score=Decimal("0.9"))

    Asks again with the same key when a connection is lost or the service is busy, so a command has one effect however
    often it is sent. A denial is never asked again. What cannot be understood raises `Unavailable`. Safe to share
    between threads; not across a fork.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | SecretStr | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        patience: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        chance: Callable[[], float] = random.random,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """base_url: of the service, without `/v1`. api_key: sent as a bearer key, never shown or logged.

        timeout_seconds: longest wait of one attempt for a connection, or for the next byte. patience: when to ask again
        and when to give up. clock (monotonic seconds), sleep, chance (0 to 1): replaced by tests.
        transport: an `httpx` transport of your own, for a private certificate authority or a proxy.
        """
        super().__init__(base_url, patience, clock, chance)
        self._sleep = sleep
        self._http = httpx.Client(**self._options(api_key, timeout_seconds), transport=transport)

    reserve = verb(commands.Reserve)
    confirm = verb(commands.Confirm)
    release = verb(commands.Release)
    extend = verb(commands.Extend)
    set_cap = verb(commands.SetCap)
    halt = verb(commands.Halt)
    resume = verb(commands.Resume)
    adopt = verb(commands.Adopt)
    freeze = verb(commands.Freeze)
    thaw = verb(commands.Thaw)
    reconciled = verb(commands.Reconciled)
    remark = verb(commands.Remark)

    run = _asks(endpoints.run)
    submit = _asks(endpoints.submit)
    portfolios = _asks(endpoints.portfolios)
    exposure = _asks(endpoints.exposure)
    heads = _asks(endpoints.heads)
    position = _asks(endpoints.position)
    positions = _asks(endpoints.positions)
    history = _asks(endpoints.history)
    decision = _asks(endpoints.decision)
    overview = _asks(endpoints.overview)
    explain = _asks(endpoints.explain)
    reconciliations = _asks(reconciliation.reconciliations)
    reconcile = _asks(reconciliation.reconcile)
    drifts = _asks(reconciliation.drifts)
    adopt_drift = _asks(reconciliation.adopt_drift)
    ignore_drift = _asks(reconciliation.ignore_drift)
    close_drift = _asks(reconciliation.close_drift)

    @contextmanager
    def hold(self, **request: Any) -> Iterator[Hold]:
        """Reserve for the length of a `with` block, and give back what it did not confirm. See `Ledger.hold`."""
        hold = Hold(self, self.reserve(**request))
        hold.require_held(self.position)
        try:
            yield hold
        except BaseException:
            hold.release_after_failure()
            raise

    def _carry_out(self, steps: Steps[T]) -> T:
        """Send and wait as the conversation asks, and return its result."""
        outcome: Response | ConnectionLost | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Wait):
                    self._sleep(step.seconds)
                    outcome = None
                else:
                    outcome = self._send(step.call)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, call: Call[Any]) -> Response | ConnectionLost:
        if self._http.is_closed:
            raise Closed("the client is closed; open it again")
        try:
            return _reply(self._http.request(call.method, call.path, **call.options()))
        except _LOST as error:
            return _lost(error)

    def close(self) -> None:
        """Close the connections. Closing twice is harmless."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncLedgerClient(_Face):
    """`LedgerClient` for coroutines: the same names, awaitable, and also under the embedded ledger's `..._async` names.

        async with AsyncLedgerClient("https://ledger.example", api_key=...) as ledger:
            decision = await ledger.reserve(key="cycle-17/BTC", signal_score=Decimal("0.9"))

    One client belongs to one event loop. Cancelling a call does not undo its command; the key tells what became of it.
    """

    def __init__(
        self,
        base_url: str = BASE_URL,
        api_key: str | SecretStr | None = None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        patience: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        chance: Callable[[], float] = random.random,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """See `LedgerClient`; `sleep` and `transport` are their awaitable kind."""
        super().__init__(base_url, patience, clock, chance)
        self._sleep = sleep
        self._http = httpx.AsyncClient(**self._options(api_key, timeout_seconds), transport=transport)

    reserve = reserve_async = verb_async(commands.Reserve)
    confirm = confirm_async = verb_async(commands.Confirm)
    release = release_async = verb_async(commands.Release)
    extend = extend_async = verb_async(commands.Extend)
    set_cap = set_cap_async = verb_async(commands.SetCap)
    halt = halt_async = verb_async(commands.Halt)
    resume = resume_async = verb_async(commands.Resume)
    adopt = adopt_async = verb_async(commands.Adopt)
    freeze = freeze_async = verb_async(commands.Freeze)
    thaw = thaw_async = verb_async(commands.Thaw)
    reconciled = reconciled_async = verb_async(commands.Reconciled)
    remark = remark_async = verb_async(commands.Remark)

    run = run_async = _asks_async(endpoints.run)
    submit = submit_async = _asks_async(endpoints.submit)
    portfolios = _asks_async(endpoints.portfolios)
    exposure = _asks_async(endpoints.exposure)
    heads = _asks_async(endpoints.heads)
    position = _asks_async(endpoints.position)
    positions = _asks_async(endpoints.positions)
    history = _asks_async(endpoints.history)
    decision = _asks_async(endpoints.decision)
    overview = _asks_async(endpoints.overview)
    explain = _asks_async(endpoints.explain)
    reconciliations = _asks_async(reconciliation.reconciliations)
    reconcile = _asks_async(reconciliation.reconcile)
    drifts = _asks_async(reconciliation.drifts)
    adopt_drift = _asks_async(reconciliation.adopt_drift)
    ignore_drift = _asks_async(reconciliation.ignore_drift)
    close_drift = _asks_async(reconciliation.close_drift)

    @asynccontextmanager
    async def hold(self, **request: Any) -> AsyncIterator[AsyncHold]:
        """Reserve for the length of an `async with` block. See `Ledger.hold`."""
        hold = AsyncHold(self, await self.reserve(**request))
        await hold.require_held(self.position)
        try:
            yield hold
        except BaseException:
            await hold.release_after_failure()
            raise

    hold_async = hold

    async def _carry_out(self, steps: Steps[T]) -> T:
        """Send and wait as the conversation asks, and return its result."""
        outcome: Response | ConnectionLost | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Wait):
                    await self._sleep(step.seconds)
                    outcome = None
                else:
                    outcome = await self._send(step.call)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, call: Call[Any]) -> Response | ConnectionLost:
        if self._http.is_closed:
            raise Closed("the client is closed; open it again")
        try:
            return _reply(await self._http.request(call.method, call.path, **call.options()))
        except _LOST as error:
            return _lost(error)

    async def close(self) -> None:
        """Close the connections. Closing twice is harmless."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _reply(response: httpx.Response) -> Response:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Response(response.status_code, headers, response.content)


def _lost(error: Exception) -> ConnectionLost:
    return ConnectionLost(f"{type(error).__name__} {error}".strip())
