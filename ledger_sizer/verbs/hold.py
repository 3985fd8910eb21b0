"""A hold for the length of a `with` block; releases it when the block fails."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from typing import Any, Protocol

from ledger_sizer.model.command_base import KEY_LENGTH_MAX
from ledger_sizer.model.commands import Confirm, Release, Reserve
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, LedgerError, WrongState
from ledger_sizer.telemetry import get_logger
from ledger_sizer.verbs.methods import AsyncCommandRunner, CommandRunner

log = get_logger(__name__)


class _HoldBase:
    """Common part of `Hold` and `AsyncHold`: the grant, and the commands that end it."""

    def __init__(self, decision: Decision) -> None:
        if decision.seq is None:
            raise InvalidRequest("a dry run holds nothing; use reserve(..., dry_run=True)", field="dry_run")
        self.decision = decision.raise_for_denial()
        self.confirmed = False

    @property
    def position_id(self) -> str:
        """Name of the held position."""
        assert self.decision.position_id is not None, "a granted reservation has a position"
        return self.decision.position_id

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the decision: budget, quantity, expires_at and so on."""
        return getattr(self.decision, name)

    def _derived_key(self, suffix: str) -> str:
        key = self.decision.key
        if len(key) + len(suffix) > KEY_LENGTH_MAX:
            key = f"{key[:100]}~{sha256(key.encode()).hexdigest()}"
        return key + suffix

    def _confirm(self, fill: dict[str, Any]) -> Confirm:
        # Set before the call, because a fill is a fact: even if the call fails, the hold may be a filled position.
        self.confirmed = True
        fill.setdefault("key", self._derived_key("/confirm"))
        return Confirm(position_id=self.position_id, **fill)

    def _release(self) -> Release:
        return Release(key=self._derived_key("/release"), position_id=self.position_id, held_only=True)

    def _log_not_released(self, error: LedgerError) -> None:
        # The caller must see the block's own exception. The hold still ends at its expiry.
        expired = isinstance(error, WrongState)
        (log.info if expired else log.warning)("hold.not_released", position=self.position_id, error=str(error))


class Hold(_HoldBase):
    """A granted reservation. `confirm` keeps it after the block; an exception before that releases it."""

    def __init__(self, runner: CommandRunner, decision: Decision) -> None:
        super().__init__(decision)
        self._runner = runner

    def require_held(self, read_position: Callable[[str], Position]) -> None:
        """Raise `WrongState` if the decision is a replay and its hold has ended: nothing is held for the block then.

        An overdue hold has ended by now, because the replayed request expired it first.
        """
        if self.decision.replayed:
            read_position(self.position_id).require("held", "hold")

    def confirm(self, **fill: Any) -> Decision:
        """Record the fill (arguments of `Ledger.confirm`; `key` defaults to the reservation's key + `/confirm`).

        After this call leaving the block no longer releases the hold, even if the call failed: there was a fill.
        """
        return self._runner.run(self._confirm(fill))

    def release(self) -> Decision:
        """Release the hold now."""
        return self._runner.run(self._release())

    def release_after_failure(self) -> None:
        """Release the hold after an exception in the block, unless confirmed. Never raises a `LedgerError`."""
        if not self.confirmed:
            try:
                self.release()
            except LedgerError as error:
                self._log_not_released(error)


class AsyncHold(_HoldBase):
    """`Hold` for `async with`."""

    def __init__(self, runner: AsyncCommandRunner, decision: Decision) -> None:
        super().__init__(decision)
        self._runner = runner

    async def require_held(self, read_position: Callable[[str], Awaitable[Position]]) -> None:
        """Raise `WrongState` if that hold has ended. See `Hold.require_held`."""
        if self.decision.replayed:
            (await read_position(self.position_id)).require("held", "hold")

    async def confirm(self, **fill: Any) -> Decision:
        """Record the fill. See `Hold.confirm`."""
        return await self._runner.run_async(self._confirm(fill))

    async def release(self) -> Decision:
        """Release the hold now."""
        return await self._runner.run_async(self._release())

    async def release_after_failure(self) -> None:
        """Release the hold after an exception in the block. See `Hold.release_after_failure`."""
        if not self.confirmed:
            try:
                await self.release()
            except LedgerError as error:
                self._log_not_released(error)


class HoldingLedger(CommandRunner, Protocol):
    """What a class with `hold` implements."""

    def position(self, position_id: str, /) -> Position:
        """Return one position by its name."""


class HoldMethod:
    """`hold`, for a class with `run` and `position`."""

    @contextmanager
    def hold(self: HoldingLedger, **request: Any) -> Iterator[Hold]:
        """Reserve for a `with` block. An exception in the block releases the hold, unless `confirm` was called.

        Takes the arguments of `reserve`. Raises `Denied` when it is denied, `WrongState` when its key was answered
        before and that hold has ended since (a new attempt needs a new key). After a normal exit an unconfirmed hold
        stays until it expires.
        """
        hold = Hold(self, self.run(Reserve(**request)))
        hold.require_held(self.position)
        try:
            yield hold
        except BaseException:
            hold.release_after_failure()
            raise


@asynccontextmanager
async def hold_async(
    ledger: AsyncCommandRunner, read_position: Callable[[str], Awaitable[Position]], request: dict[str, Any]
) -> AsyncIterator[AsyncHold]:
    """Reserve for an `async with` block. See `HoldMethod.hold`."""
    hold = AsyncHold(ledger, await ledger.run_async(Reserve(**request)))
    await hold.require_held(read_position)
    try:
        yield hold
    except BaseException:
        await hold.release_after_failure()
        raise
