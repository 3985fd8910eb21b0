"""A hold for the length of a `with` block; releases it when the block fails, keeps it where an order may be live."""

import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from hashlib import sha256
from typing import Any, Protocol, get_args

from ledger_sizer.model.choices import OnUnknown
from ledger_sizer.model.commands import Confirm, Extend, Fill, Release, Reserve
from ledger_sizer.model.decisions import Decision
from ledger_sizer.model.derived_keys import derived_key
from ledger_sizer.model.domain import Position
from ledger_sizer.model.errors import InvalidRequest, WrongState
from ledger_sizer.model.units import decimal_text
from ledger_sizer.telemetry import get_logger
from ledger_sizer.verbs.methods import AsyncCommandRunner, CommandRunner
from ledger_sizer.verbs.unknown_outcome import outcome_unknown

log = get_logger(__name__)

_FILL_LENGTH_MAX = 30


class _HoldBase:
    """Common part of `Hold` and `AsyncHold`: the grant, and the commands that end it.

    growth: whether it is more of a live position. confirmed: a fill was told, or tried to. ended: nothing is left to
    release or to keep.
    """

    def __init__(self, decision: Decision, *, on_unknown: OnUnknown, growth: bool) -> None:
        if decision.seq is None:
            raise InvalidRequest("a dry run holds nothing; use reserve(..., dry_run=True)", field="dry_run")
        self.decision = decision.raise_for_denial()
        self.growth = growth
        self.confirmed = False
        self.ended = False
        self._on_unknown = on_unknown
        self._handled_before = sys.exception()
        self._parts_told = 0

    @property
    def position_id(self) -> str:
        """Name of the held position."""
        assert self.decision.position_id is not None, "a granted reservation has a position"
        return self.decision.position_id

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the decision: budget, quantity, expires_at and so on."""
        return getattr(self.decision, name)

    def _derived_key(self, suffix: str) -> str:
        return derived_key(self.decision.key, suffix)

    def _require_hold(self, position: Position) -> None:
        """Raise `WrongState` where the hold of a replayed decision is not there whole, or an order of it may be live.

        Orders for all of it would be placed otherwise with less held, or a second time.
        """
        if not self.growth:
            position.require("held", "hold")
        position.require_pending("hold")
        if self.growth and position.held < (self.decision.budget or 0):
            raise WrongState(
                f"cannot hold {position.position_id}: of what decision {self.decision.seq} granted a part is filled or "
                "freed; ask for more under a new key"
            )
        if position.until_known and not self.decision.until_known:
            raise WrongState(
                f"cannot hold {position.position_id}: since seq {position.updated_seq} an order of it may be live; "
                "find it at the exchange, then fill or release it, and begin anew under a new key"
            )

    def _confirm(self, fill: dict[str, Any]) -> Confirm:
        # Set before the call, because a fill is a fact: even if the call fails, the hold may be a filled position.
        self.confirmed = True
        # A part that was not answered is told again under its own key.
        fill.setdefault(
            "key", self._derived_key(f"/confirm-{self._parts_told + 1}" if self._parts_told else "/confirm")
        )
        return Confirm(position_id=self.position_id, **fill)

    def _confirm_answered(self, command: Confirm) -> None:
        if command.rest == "hold":
            self._parts_told += 1
        else:
            self.ended = True

    def _fill(self, fill: dict[str, Any]) -> Fill:
        self.confirmed = True
        named = "key" in fill
        command = Fill(position_id=self.position_id, **{"key": self.decision.key, **fill})
        if named:
            return command
        text = f"{decimal_text(command.filled_quantity)}@{decimal_text(command.price)}:{command.rest}"
        if len(text) > _FILL_LENGTH_MAX:
            text = sha256(text.encode()).hexdigest()[:_FILL_LENGTH_MAX]
        return Fill(position_id=self.position_id, **fill, key=self._derived_key(f"/fill/{text}"))

    def _release(self) -> Release:
        return Release(key=self._derived_key("/release"), position_id=self.position_id, held_only=True)

    def _keep(self) -> Extend:
        return Extend(key=self._derived_key("/until-known"), position_id=self.position_id, until_known=True)

    def _must_keep(self, error: BaseException) -> bool:
        """Whether the block's exception leaves an order behind of which nobody knows whether it lives."""
        return self._on_unknown == "keep" and outcome_unknown(error, self._handled_before)

    def _may_release(self, position: Position) -> bool:
        """Whether the hold of a position that grew is this block's alone."""
        if position.held <= (self.decision.budget or 0):
            return True
        log.info("hold.left_to_its_time", position=self.position_id, held=str(position.held))
        return False

    def _log_failed(self, event: str, error: Exception) -> None:
        # The caller must see the block's own exception. The hold still ends at its expiry.
        ended = isinstance(error, WrongState)
        (log.info if ended else log.warning)(event, position=self.position_id, error=str(error))


class Hold(_HoldBase):
    """A granted reservation. `confirm` keeps it after the block; an exception before that releases it.

    An exception that leaves the fate of an order unknown keeps it until somebody knows (see `HoldMethod.hold`).
    """

    def __init__(self, ledger: "HoldingLedger", decision: Decision, *, on_unknown: OnUnknown, growth: bool) -> None:
        super().__init__(decision, on_unknown=on_unknown, growth=growth)
        self._ledger = ledger

    def require_held(self) -> None:
        """Raise `WrongState` if the decision is a replay and its hold has ended: nothing is held for the block then.

        An overdue hold has ended by now, because the replayed request expired it first.
        """
        if self.decision.replayed:
            self._require_hold(self._ledger.position(self.position_id))

    def confirm(self, **fill: Any) -> Decision:
        """Record a fill (arguments of `Ledger.confirm`; `key` defaults to the reservation's key + `/confirm`).

        After this call leaving the block no longer releases the hold, even if the call failed: there was a fill. With
        `rest="hold"` it may be called again for the next fill, under `/confirm-2` and so on.
        """
        command = self._confirm(fill)
        decision = self._ledger.run(command)
        self._confirm_answered(command)
        return decision

    def fill(self, **fill: Any) -> Decision:
        """Say how much is filled by now (arguments of `Ledger.fill`; `key` defaults to one made of the figures)."""
        command = self._fill(fill)
        decision = self._ledger.run(command)
        self.ended = command.rest == "free"
        return decision

    def release(self) -> Decision:
        """Release the hold now."""
        decision = self._ledger.run(self._release())
        self.ended = True
        return decision

    def end_after(self, error: BaseException) -> None:
        """Release or keep the hold after an exception in the block. Never raises an `Exception`."""
        if self.ended:
            return
        if self._must_keep(error):
            if not self.decision.until_known:
                try:
                    self._ledger.run(self._keep())
                except Exception as failed:  # noqa: BLE001 - the block's own exception must be seen
                    self._log_failed("hold.not_kept", failed)
        elif not self.confirmed:
            try:
                if not self.growth or self._may_release(self._ledger.position(self.position_id)):
                    self.release()
            except Exception as failed:  # noqa: BLE001 - as above
                self._log_failed("hold.not_released", failed)


class AsyncHold(_HoldBase):
    """`Hold` for `async with`."""

    def __init__(
        self,
        ledger: AsyncCommandRunner,
        read_position: Callable[[str], Awaitable[Position]],
        decision: Decision,
        *,
        on_unknown: OnUnknown,
        growth: bool,
    ) -> None:
        super().__init__(decision, on_unknown=on_unknown, growth=growth)
        self._ledger = ledger
        self._read_position = read_position

    async def require_held(self) -> None:
        """Raise `WrongState` if that hold has ended. See `Hold.require_held`."""
        if self.decision.replayed:
            self._require_hold(await self._read_position(self.position_id))

    async def confirm(self, **fill: Any) -> Decision:
        """Record a fill. See `Hold.confirm`."""
        command = self._confirm(fill)
        decision = await self._ledger.run_async(command)
        self._confirm_answered(command)
        return decision

    async def fill(self, **fill: Any) -> Decision:
        """Say how much is filled by now. See `Hold.fill`."""
        command = self._fill(fill)
        decision = await self._ledger.run_async(command)
        self.ended = command.rest == "free"
        return decision

    async def release(self) -> Decision:
        """Release the hold now."""
        decision = await self._ledger.run_async(self._release())
        self.ended = True
        return decision

    async def end_after(self, error: BaseException) -> None:
        """Release or keep the hold after an exception in the block. See `Hold.end_after`."""
        if self.ended:
            return
        if self._must_keep(error):
            if not self.decision.until_known:
                try:
                    await self._ledger.run_async(self._keep())
                except Exception as failed:  # noqa: BLE001 - the block's own exception must be seen
                    self._log_failed("hold.not_kept", failed)
        elif not self.confirmed:
            try:
                if not self.growth or self._may_release(await self._read_position(self.position_id)):
                    await self.release()
            except Exception as failed:  # noqa: BLE001 - as above
                self._log_failed("hold.not_released", failed)


class HoldingLedger(CommandRunner, Protocol):
    """What a class with `hold` implements."""

    def position(self, position_id: str, /) -> Position:
        """Return one position by its name."""


class HoldMethod:
    """`hold`, for a class with `run` and `position`."""

    @contextmanager
    def hold(self: HoldingLedger, *, on_unknown: OnUnknown = "keep", **request: Any) -> Iterator[Hold]:
        """Reserve for a `with` block. An exception in the block releases the hold, unless `confirm` was called.

        Takes the arguments of `reserve`. on_unknown: what becomes of the hold where the exception leaves the fate of an
        order unknown: a time-out, a lost connection, a cancelled call, `Unavailable` (see `verbs.unknown_outcome`).
        `keep`: it never ends by time any more (`until_known`), until a fill, a release or the reconciliation decides
        it. `release`: it is released like after any other exception.

        Raises `Denied` when it is denied, `WrongState` when its key was answered before and that hold has ended since,
        or an order of it may be live (a new attempt needs a new key). After a normal exit an unconfirmed hold stays
        until it expires. With `position_id` it is more of a live position, and only what this block asked for is
        released: where the position holds more than that, its hold is left to its time.
        """
        _require_choice(on_unknown)
        growth = request.get("position_id") is not None
        hold = Hold(self, self.run(Reserve(**request)), on_unknown=on_unknown, growth=growth)
        hold.require_held()
        try:
            yield hold
        except BaseException as error:
            hold.end_after(error)
            raise


@asynccontextmanager
async def hold_async(
    ledger: AsyncCommandRunner,
    read_position: Callable[[str], Awaitable[Position]],
    on_unknown: OnUnknown,
    request: dict[str, Any],
) -> AsyncIterator[AsyncHold]:
    """Reserve for an `async with` block. See `HoldMethod.hold`."""
    _require_choice(on_unknown)
    growth = request.get("position_id") is not None
    decision = await ledger.run_async(Reserve(**request))
    hold = AsyncHold(ledger, read_position, decision, on_unknown=on_unknown, growth=growth)
    await hold.require_held()
    try:
        yield hold
    except BaseException as error:
        await hold.end_after(error)
        raise


def _require_choice(on_unknown: object) -> None:
    if on_unknown not in get_args(OnUnknown):
        raise InvalidRequest(
            f"on_unknown must be {' or '.join(get_args(OnUnknown))}, got {on_unknown!r:.100}", field="on_unknown"
        )
