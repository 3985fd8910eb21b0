"""The verbs, once: every face (embedded, HTTP client; blocking, awaitable) makes them from the command types.

A verb takes exactly the arguments of its command type and returns the `Decision`, or raises a `LedgerError`.
"""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ledger_sizer.model.commands import AnyCommand
from ledger_sizer.model.decisions import Decision

P = ParamSpec("P")
M = TypeVar("M", bound=Callable[..., Any])


class CommandRunner(Protocol):
    """What a blocking face implements: run one command to its decision."""

    def run(self, command: AnyCommand) -> Decision:
        """Answer one command, or raise a `LedgerError`."""


class AsyncCommandRunner(Protocol):
    """What an awaitable face implements."""

    async def run_async(self, command: AnyCommand) -> Decision:
        """Answer one command, or raise a `LedgerError`."""


def verb(make: Callable[P, AnyCommand]) -> Callable[Concatenate[CommandRunner, P], Decision]:
    """A blocking method with the arguments of `make`."""

    def method(self: CommandRunner, /, *args: P.args, **kwargs: P.kwargs) -> Decision:
        return self.run(make(*args, **kwargs))

    return _dressed(method, make)


def verb_async(
    make: Callable[P, AnyCommand],
) -> Callable[Concatenate[AsyncCommandRunner, P], Coroutine[Any, Any, Decision]]:
    """An awaitable method with the arguments of `make`."""

    async def method(self: AsyncCommandRunner, /, *args: P.args, **kwargs: P.kwargs) -> Decision:
        return await self.run_async(make(*args, **kwargs))

    return _dressed(method, make)


def _dressed(method: M, make: Any) -> M:
    """Give the method its command's documentation and signature, for `help()` and editors."""
    method.__name__ = method.__qualname__ = make.verb
    method.__doc__ = make.__doc__
    arguments = inspect.signature(make).parameters.values()
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.Signature([this, *arguments], return_annotation=Decision)
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method
