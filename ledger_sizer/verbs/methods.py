"""The methods of the verbs, made from the command types: for the ledger and the HTTP clients, sync and async.

A verb takes exactly the arguments of its command type and returns the `Decision`, or raises a `LedgerError`.
"""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from ledger_sizer.model import commands
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


def _method(make: Callable[P, AnyCommand]) -> Callable[Concatenate[CommandRunner, P], Decision]:
    """Build a sync method with the arguments of `make`."""

    def method(self: CommandRunner, /, *args: P.args, **kwargs: P.kwargs) -> Decision:
        return self.run(make(*args, **kwargs))

    return _with_signature_of(method, make)


def _async_method(
    make: Callable[P, AnyCommand],
) -> Callable[Concatenate[AsyncCommandRunner, P], Coroutine[Any, Any, Decision]]:
    """Build an async method with the arguments of `make`."""

    async def method(self: AsyncCommandRunner, /, *args: P.args, **kwargs: P.kwargs) -> Decision:
        return await self.run_async(make(*args, **kwargs))

    return _with_signature_of(method, make)


def _with_signature_of(method: M, make: Any) -> M:
    """Give the method the documentation and signature of its command, for `help()` and editors."""
    method.__name__ = method.__qualname__ = make.verb
    helps = [f"{one.name}: {one.declared.help}" for one in make.arguments]
    method.__doc__ = "\n".join([inspect.getdoc(make) or "", "", *helps])
    arguments = [
        one.replace(annotation=getattr(one.annotation, "__origin__", one.annotation))
        for one in inspect.signature(make).parameters.values()
    ]
    this = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = inspect.Signature([this, *arguments], return_annotation=Decision)
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method


class Verbs:
    """The verbs as sync methods. A class with `run` inherits it."""

    reserve = _method(commands.Reserve)
    confirm = _method(commands.Confirm)
    fill = _method(commands.Fill)
    release = _method(commands.Release)
    extend = _method(commands.Extend)
    retag = _method(commands.Retag)
    reprice = _method(commands.Reprice)
    rename = _method(commands.Rename)
    adopt = _method(commands.Adopt)
    set_cap = _method(commands.SetCap)
    halt = _method(commands.Halt)
    resume = _method(commands.Resume)
    freeze = _method(commands.Freeze)
    thaw = _method(commands.Thaw)
    reconciled = _method(commands.Reconciled)
    account_seen = _method(commands.AccountSeen)
    equity_seen = _method(commands.EquitySeen)
    remark = _method(commands.Remark)


class AsyncVerbs:
    """The verbs as async methods, under the same names with `_async`. A class with `run_async` inherits it."""

    reserve_async = _async_method(commands.Reserve)
    confirm_async = _async_method(commands.Confirm)
    fill_async = _async_method(commands.Fill)
    release_async = _async_method(commands.Release)
    extend_async = _async_method(commands.Extend)
    retag_async = _async_method(commands.Retag)
    reprice_async = _async_method(commands.Reprice)
    rename_async = _async_method(commands.Rename)
    adopt_async = _async_method(commands.Adopt)
    set_cap_async = _async_method(commands.SetCap)
    halt_async = _async_method(commands.Halt)
    resume_async = _async_method(commands.Resume)
    freeze_async = _async_method(commands.Freeze)
    thaw_async = _async_method(commands.Thaw)
    reconciled_async = _async_method(commands.Reconciled)
    account_seen_async = _async_method(commands.AccountSeen)
    equity_seen_async = _async_method(commands.EquitySeen)
    remark_async = _async_method(commands.Remark)


class AwaitableVerbs(AsyncVerbs):
    """The verbs as async methods, under both names, for a class that has no sync ones."""

    reserve = AsyncVerbs.reserve_async
    confirm = AsyncVerbs.confirm_async
    fill = AsyncVerbs.fill_async
    release = AsyncVerbs.release_async
    extend = AsyncVerbs.extend_async
    retag = AsyncVerbs.retag_async
    reprice = AsyncVerbs.reprice_async
    rename = AsyncVerbs.rename_async
    adopt = AsyncVerbs.adopt_async
    set_cap = AsyncVerbs.set_cap_async
    halt = AsyncVerbs.halt_async
    resume = AsyncVerbs.resume_async
    freeze = AsyncVerbs.freeze_async
    thaw = AsyncVerbs.thaw_async
    reconciled = AsyncVerbs.reconciled_async
    account_seen = AsyncVerbs.account_seen_async
    equity_seen = AsyncVerbs.equity_seen_async
    remark = AsyncVerbs.remark_async
