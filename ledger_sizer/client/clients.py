"""`LedgerClient` (sync) and `AsyncLedgerClient`.

They differ only in how they send bytes and how they wait. They share what is sent (`endpoints`), when it is sent again
(`retry`) and what a response means (`responses`).
"""

import asyncio
import inspect
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from pydantic import SecretStr

from ledger_sizer.client import audit, endpoints, reconciliation
from ledger_sizer.client.endpoints import Call, Calls
from ledger_sizer.client.responses import ConnectionLost, Response
from ledger_sizer.client.retry import RetryPolicy, Steps, Wait, with_retries
from ledger_sizer.model.choices import OnUnknown
from ledger_sizer.model.errors import Closed, InvalidRequest, Unavailable
from ledger_sizer.verbs.hold import AsyncHold, HoldMethod, hold_async
from ledger_sizer.verbs.methods import AwaitableVerbs, Verbs

P = ParamSpec("P")
T = TypeVar("T")

BASE_URL = "http://127.0.0.1:8321"
TIMEOUT_SECONDS = 10.0
CONNECTIONS_MAX = 100

_CONNECTION_ERRORS = (httpx.TransportError, httpx.DecodingError)


class _BaseClient:
    """Base of both clients: the service's URL, the retry policy, the clock and the random numbers."""

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

    def _httpx_options(self, api_key: str | SecretStr | None, timeout_seconds: float) -> dict[str, Any]:
        """Return the arguments of both `httpx` clients. Not stored: only the client's headers hold the key."""
        secret = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        return {
            "base_url": self.base_url,
            "headers": {"Accept": "application/json", **({"Authorization": f"Bearer {secret}"} if secret else {})},
            "timeout": httpx.Timeout(timeout_seconds),
            "limits": httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            # A proxy named by an environment variable must not see the ledger's requests, nor answer them.
            "trust_env": False,
            "follow_redirects": False,
        }

    def _steps(self, calls: Calls[T]) -> Steps[T]:
        return with_retries(calls, self.patience, clock=self._clock, chance=self._chance)


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


def _sync_method(make: Callable[P, Calls[T]]) -> Callable[Concatenate["LedgerClient", P], T]:
    """Make a sync method with the arguments of `make`."""

    def method(self: "LedgerClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._execute(self._steps(make(*args, **kwargs)))

    return _with_signature_of(method, make)


def _async_method(make: Callable[P, Calls[T]]) -> Callable[Concatenate["AsyncLedgerClient", P], Coroutine[Any, Any, T]]:
    """Make an async method with the arguments of `make`."""

    async def method(self: "AsyncLedgerClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._execute(self._steps(make(*args, **kwargs)))

    return _with_signature_of(method, make)


def _sync_stream(make: Callable[P, Calls[None]]) -> Callable[Concatenate["LedgerClient", P], Iterator[bytes]]:
    """Make a sync method with the arguments of `make` that yields the body of its response in parts."""

    def method(self: "LedgerClient", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[bytes]:
        return self._parts(make(*args, **kwargs))

    return _with_signature_of(method, make)


def _async_stream(
    make: Callable[P, Calls[None]],
) -> Callable[Concatenate["AsyncLedgerClient", P], AsyncIterator[bytes]]:
    """Make a method with the arguments of `make` for `async for` over the body of its response."""

    def method(self: "AsyncLedgerClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[bytes]:
        return self._parts(make(*args, **kwargs))

    return _with_signature_of(method, make)


_M = TypeVar("_M", bound=Callable[..., Any])


def _with_signature_of(method: _M, make: Callable[..., Any]) -> _M:
    """Give the method the name, documentation and signature of the function it was made from."""
    method.__name__ = method.__qualname__ = make.__name__
    method.__doc__ = make.__doc__
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [this, *inspect.signature(make).parameters.values()]
    )
    return method


class LedgerClient(_BaseClient, Verbs, HoldMethod):
    """The ledger over HTTP: the verbs, arguments, results and exceptions of the embedded `Ledger`.

        with LedgerClient("https://ledger.example", api_key=...) as ledger:
            decision = ledger.reserve(key="cycle-17/BTC", signal_score=Decimal("0.9"))

    Retries with the same key when a connection is lost or the service is busy, so a command takes effect once however
    often it is sent. A denial is never retried. A response that cannot be understood raises `Unavailable`. Threads may
    share a client; it must not be used across a fork.
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
        """base_url: the service's URL, without `/v1`. api_key: sent as a bearer token, never shown or logged.

        timeout_seconds: longest wait of one attempt for a connection, or for the next byte. patience: when to retry
        and when to give up. clock (monotonic seconds), sleep, chance (random numbers in [0, 1)): replaced by tests.
        transport: your own `httpx` transport, for a private certificate authority or a proxy.
        """
        super().__init__(base_url, patience, clock, chance)
        self._sleep = sleep
        self._http = httpx.Client(**self._httpx_options(api_key, timeout_seconds), transport=transport)

    run = _sync_method(endpoints.run)
    submit = _sync_method(endpoints.submit)
    portfolios = _sync_method(endpoints.portfolios)
    exposure = _sync_method(endpoints.exposure)
    exposure_page = _sync_method(endpoints.exposure_page)
    heads = _sync_method(endpoints.heads)
    position = _sync_method(endpoints.position)
    positions = _sync_method(endpoints.positions)
    history = _sync_method(endpoints.history)
    lookup = _sync_method(endpoints.lookup)
    desk_status = _sync_method(endpoints.desk_status)
    decision = _sync_method(endpoints.decision)
    overview = _sync_method(endpoints.overview)
    net = _sync_method(endpoints.net)
    explain = _sync_method(endpoints.explain)
    verify = _sync_method(audit.verify)
    sweep = _sync_method(audit.sweep)
    export = _sync_stream(audit.export)
    settle = _sync_method(audit.settle)
    release_all = _sync_method(audit.release_all)
    reconciliations = _sync_method(reconciliation.reconciliations)
    reconcile = _sync_method(reconciliation.reconcile)
    drifts = _sync_method(reconciliation.drifts)
    drift_activity = _sync_method(reconciliation.drift_activity)
    drift = _sync_method(reconciliation.drift)
    adopt_drifts = _sync_method(reconciliation.adopt_drifts)
    ignore_drifts = _sync_method(reconciliation.ignore_drifts)
    close_drifts = _sync_method(reconciliation.close_drifts)
    adopt_drift = _sync_method(reconciliation.adopt_drift)
    ignore_drift = _sync_method(reconciliation.ignore_drift)
    close_drift = _sync_method(reconciliation.close_drift)
    rename_coin = _sync_method(reconciliation.rename_coin)
    asset_policies = _sync_method(reconciliation.asset_policies)
    take_back_asset_policy = _sync_method(reconciliation.take_back_asset_policy)

    def _execute(self, steps: Steps[T], opened: list[httpx.Response] | None = None) -> T:
        """Send and wait as the steps say, and return their result. opened: see `_send`."""
        outcome: Response | ConnectionLost | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Wait):
                    self._sleep(step.seconds)
                    outcome = None
                else:
                    outcome = self._send(step.call, opened)
        except StopIteration as end:
            result: T = end.value
            return result

    def _send(self, call: Call[Any], opened: list[httpx.Response] | None) -> Response | ConnectionLost:
        """Send a call. opened: a list that the response is added to; the body of a 200 is left unread then."""
        if self._http.is_closed:
            raise Closed("the client is closed; open it again")
        try:
            request = self._http.build_request(call.method, call.path, **call.options())
            response = self._http.send(request, stream=opened is not None)
            if opened is not None:
                opened.append(response)
                if response.status_code == 200:
                    return _to_response(response, b"")
                response.read()
            return _to_response(response, response.content)
        except _CONNECTION_ERRORS as error:
            return _to_connection_lost(error)

    def _parts(self, calls: Calls[None]) -> Iterator[bytes]:
        """Yield the body of the call's response as it comes. Retries up to its first byte."""
        opened: list[httpx.Response] = []
        try:
            self._execute(self._steps(calls), opened)
            yield from opened[-1].iter_bytes()
        except _CONNECTION_ERRORS as error:
            raise _broken_off(error) from None
        finally:
            for response in opened:
                response.close()

    def close(self) -> None:
        """Close the connections. Closing twice is harmless."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncLedgerClient(_BaseClient, AwaitableVerbs):
    """Async `LedgerClient`: the same method names; what `Ledger` has as `..._async` also under that name.

        async with AsyncLedgerClient("https://ledger.example", api_key=...) as ledger:
            decision = await ledger.reserve(key="cycle-17/BTC", signal_score=Decimal("0.9"))

    One client belongs to one event loop. Cancelling a call does not undo its command: send the same key again to learn
    its outcome.
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
        """See `LedgerClient`; `sleep` and `transport` are async."""
        super().__init__(base_url, patience, clock, chance)
        self._sleep = sleep
        self._http = httpx.AsyncClient(**self._httpx_options(api_key, timeout_seconds), transport=transport)

    run = run_async = _async_method(endpoints.run)
    submit = submit_async = _async_method(endpoints.submit)
    portfolios = portfolios_async = _async_method(endpoints.portfolios)
    exposure = exposure_async = _async_method(endpoints.exposure)
    exposure_page = exposure_page_async = _async_method(endpoints.exposure_page)
    heads = heads_async = _async_method(endpoints.heads)
    position = position_async = _async_method(endpoints.position)
    positions = positions_async = _async_method(endpoints.positions)
    history = history_async = _async_method(endpoints.history)
    lookup = lookup_async = _async_method(endpoints.lookup)
    desk_status = desk_status_async = _async_method(endpoints.desk_status)
    decision = decision_async = _async_method(endpoints.decision)
    overview = overview_async = _async_method(endpoints.overview)
    net = net_async = _async_method(endpoints.net)
    explain = explain_async = _async_method(endpoints.explain)
    verify = verify_async = _async_method(audit.verify)
    sweep = _async_method(audit.sweep)
    export = export_async = _async_stream(audit.export)
    settle = settle_async = _async_method(audit.settle)
    release_all = release_all_async = _async_method(audit.release_all)
    reconciliations = _async_method(reconciliation.reconciliations)
    reconcile = _async_method(reconciliation.reconcile)
    drifts = _async_method(reconciliation.drifts)
    drift_activity = _async_method(reconciliation.drift_activity)
    drift = _async_method(reconciliation.drift)
    adopt_drifts = _async_method(reconciliation.adopt_drifts)
    ignore_drifts = _async_method(reconciliation.ignore_drifts)
    close_drifts = _async_method(reconciliation.close_drifts)
    adopt_drift = _async_method(reconciliation.adopt_drift)
    ignore_drift = _async_method(reconciliation.ignore_drift)
    close_drift = _async_method(reconciliation.close_drift)
    rename_coin = _async_method(reconciliation.rename_coin)
    asset_policies = _async_method(reconciliation.asset_policies)
    take_back_asset_policy = _async_method(reconciliation.take_back_asset_policy)

    def hold(self, *, on_unknown: OnUnknown = "keep", **request: Any) -> AbstractAsyncContextManager[AsyncHold]:
        """Reserve for an `async with` block. See `Ledger.hold`."""
        return hold_async(self, self.position, on_unknown, request)

    hold_async = hold

    async def _execute(self, steps: Steps[T], opened: list[httpx.Response] | None = None) -> T:
        """Send and wait as the steps say, and return their result. opened: see `LedgerClient._send`."""
        outcome: Response | ConnectionLost | None = None
        try:
            while True:
                step = steps.send(outcome)
                if isinstance(step, Wait):
                    await self._sleep(step.seconds)
                    outcome = None
                else:
                    outcome = await self._send(step.call, opened)
        except StopIteration as end:
            result: T = end.value
            return result

    async def _send(self, call: Call[Any], opened: list[httpx.Response] | None) -> Response | ConnectionLost:
        if self._http.is_closed:
            raise Closed("the client is closed; open it again")
        try:
            request = self._http.build_request(call.method, call.path, **call.options())
            response = await self._http.send(request, stream=opened is not None)
            if opened is not None:
                opened.append(response)
                if response.status_code == 200:
                    return _to_response(response, b"")
                await response.aread()
            return _to_response(response, response.content)
        except _CONNECTION_ERRORS as error:
            return _to_connection_lost(error)

    async def _parts(self, calls: Calls[None]) -> AsyncIterator[bytes]:
        """Yield the body of the call's response as it comes. See `LedgerClient._parts`."""
        opened: list[httpx.Response] = []
        try:
            await self._execute(self._steps(calls), opened)
            async for part in opened[-1].aiter_bytes():
                yield part
        except _CONNECTION_ERRORS as error:
            raise _broken_off(error) from None
        finally:
            for response in opened:
                await response.aclose()

    async def close(self) -> None:
        """Close the connections. Closing twice is harmless."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _to_response(response: httpx.Response, body: bytes) -> Response:
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Response(response.status_code, headers, body)


def _broken_off(error: Exception) -> Unavailable:
    return Unavailable(
        f"the answer broke off ({_to_connection_lost(error).what}): what came so far is a part; begin anew, or with "
        "the seq of the last whole line as cursor"
    )


def _to_connection_lost(error: Exception) -> ConnectionLost:
    return ConnectionLost(f"{type(error).__name__} {error}".strip())
