"""A reservation for the length of a `with` block."""

from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Any

from ledger_sizer.model.command_base import KEY_LENGTH_MAX
from ledger_sizer.model.commands import Confirm, Release
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, LedgerError, WrongState
from ledger_sizer.telemetry import get_logger
from ledger_sizer.verbs.methods import AsyncCommandRunner, CommandRunner

log = get_logger(__name__)


class _Granted:
    """What a blocking and an awaitable hold share: the grant, and the commands that end it."""

    def __init__(self, decision: Decision) -> None:
        if decision.seq is None:
            raise InvalidRequest("a dry run holds nothing; use reserve(..., dry_run=True)", field="dry_run")
        self.decision = decision.raise_for_denial()
        self.confirmed = False

    @property
    def position_id(self) -> str:
        """The position held."""
        assert self.decision.position_id is not None, "a granted reservation has a position"
        return self.decision.position_id

    def __getattr__(self, name: str) -> Any:
        """Budget, quantity, expires_at and the rest of the decision."""
        return getattr(self.decision, name)

    def _key(self, suffix: str) -> str:
        key = self.decision.key
        if len(key) + len(suffix) > KEY_LENGTH_MAX:
            key = f"{key[:100]}~{sha256(key.encode()).hexdigest()}"
        return key + suffix

    def _confirm(self, fill: dict[str, Any]) -> Confirm:
        # From here on the hold may be a filled position, whatever becomes of the call: a fill is a fact.
        self.confirmed = True
        fill.setdefault("key", self._key("/confirm"))
        return Confirm(position_id=self.position_id, **fill)

    def _release(self) -> Release:
        return Release(key=self._key("/release"), position_id=self.position_id, held_only=True)

    def _not_released(self, error: LedgerError) -> None:
        # The block's own exception is what the caller must see; the hold ends by itself at its expiry.
        expired = isinstance(error, WrongState)
        (log.info if expired else log.warning)("hold.not_released", position=self.position_id, error=str(error))


class Hold(_Granted):
    """A granted reservation. `confirm` keeps it beyond the block; an exception before that gives it back."""

    def __init__(self, runner: CommandRunner, decision: Decision) -> None:
        super().__init__(decision)
        self._runner = runner

    def require_held(self, look: Callable[[str], Position]) -> None:
        """Raise `WrongState` where the key was answered before and that hold has ended: nothing is held for the block.

        look: reads a position. One whose time is over has ended by now: answering a key again frees it first.
        """
        if self.decision.replayed:
            look(self.position_id).require("held", "hold")

    def confirm(self, **fill: Any) -> Decision:
        """Record the fill (arguments of `Ledger.confirm`; `key` defaults to the reservation's key + `/confirm`).

        Once this was called, leaving the block no longer releases: even where the call failed, there was a fill.
        """
        return self._runner.run(self._confirm(fill))

    def release(self) -> Decision:
        """Give the hold back now."""
        return self._runner.run(self._release())

    def release_after_failure(self) -> None:
        """Give it back while an exception passes, unless it was confirmed; never raises a `LedgerError`."""
        if not self.confirmed:
            try:
                self.release()
            except LedgerError as error:
                self._not_released(error)


class AsyncHold(_Granted):
    """`Hold` for coroutines."""

    def __init__(self, runner: AsyncCommandRunner, decision: Decision) -> None:
        super().__init__(decision)
        self._runner = runner

    async def require_held(self, look: Callable[[str], Awaitable[Position]]) -> None:
        """Raise `WrongState` where that hold has ended. See `Hold.require_held`."""
        if self.decision.replayed:
            (await look(self.position_id)).require("held", "hold")

    async def confirm(self, **fill: Any) -> Decision:
        """Record the fill. See `Hold.confirm`."""
        return await self._runner.run_async(self._confirm(fill))

    async def release(self) -> Decision:
        """Give the hold back now."""
        return await self._runner.run_async(self._release())

    async def release_after_failure(self) -> None:
        """Give it back while an exception passes. See `Hold.release_after_failure`."""
        if not self.confirmed:
            try:
                await self.release()
            except LedgerError as error:
                self._not_released(error)
