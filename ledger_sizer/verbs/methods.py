"""Builds the methods of the verbs from the command types, for the ledger and the HTTP clients, sync and async.

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
    """What a class with sync verbs implements."""

    def run(self, command: AnyCommand) -> Decision:
        """Return the decision of one command, or raise a `LedgerError`."""


class AsyncCommandRunner(Protocol):
    """What a class with async verbs implements."""

    async def run_async(self, command: AnyCommand) -> Decision:
        """Return the decision of one command, or raise a `LedgerError`."""


def verb(make: Callable[P, AnyCommand]) -> Callable[Concatenate[CommandRunner, P], Decision]:
    """Build a sync method with the arguments of `make`."""

    def method(self: CommandRunner, /, *args: P.args, **kwargs: P.kwargs) -> Decision:
        return self.run(make(*args, **kwargs))

    return _with_signature_of(method, make)


def verb_async(
    make: Callable[P, AnyCommand],
) -> Callable[Concatenate[AsyncCommandRunner, P], Coroutine[Any, Any, Decision]]:
    """Build an async method with the arguments of `make`."""

    async def method(self: AsyncCommandRunner, /, *args: P.args, **kwargs: P.kwargs) -> Decision:
        return await self.run_async(make(*args, **kwargs))

    return _with_signature_of(method, make)


def _with_signature_of(method: M, make: Any) -> M:
    """Give the method the docstring and signature of its command, for `help()` and editors."""
    method.__name__ = method.__qualname__ = make.verb
    method.__doc__ = make.__doc__
    arguments = inspect.signature(make).parameters.values()
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.Signature([this, *arguments], return_annotation=Decision)
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method
