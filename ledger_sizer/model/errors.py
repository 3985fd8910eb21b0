"""The errors of this package. A few more, of one place only, stand where they are raised, below one of these.

    LedgerError
    ├── InvalidRequest      the caller sent something no ledger could accept; names the field
    │   └── KeyReused       the idempotency key already answered a different request
    ├── NotFound            no such portfolio, position or decision
    ├── WrongState          the position's life, or the drift's, does not allow this now
    ├── Denied              a denial the caller asked to have raised (`Decision.raise_for_denial`)
    ├── Busy                the queue is full or the database is contended; nothing was recorded, try again
    ├── Unavailable         the database is away, or the outcome is not known; retry with the same key
    ├── Closed              the ledger was closed
    ├── SchemaOutdated      the database is behind (or ahead of) this version's migrations
    └── InternalError       a defect in this package; nothing was recorded for the command

Errors carry a stable `code`; HTTP, the command line and the client library all speak these codes. None of them
can be mistaken for a grant: `granted` is False on each, so that a careless `if result.granted` stays safe.
"""

from typing import TYPE_CHECKING, ClassVar, NoReturn

if TYPE_CHECKING:
    from ledger_sizer.model.decisions import Decision


class LedgerError(Exception):
    """Base of all errors of this package. `code` is stable, `retryable` says whether the same key may be sent again."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    granted: ClassVar[bool] = False
    outcome: ClassVar[str] = "error"

    @property
    def reason(self) -> str:
        """The code, under the name a `Decision` uses, so that a batch's results can be read alike."""
        return self.code

    def raise_for_denial(self) -> NoReturn:
        """Raise this error: in a batch's results it stands where a `Decision` would."""
        raise self


class InvalidRequest(LedgerError, ValueError):
    """The request is wrong in itself. `field` names the argument, the message its value and what would be right."""

    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class KeyReused(InvalidRequest):
    """The idempotency key was used before with another body. Make a new key for a new request."""

    code = "idempotency_key_reused"

    def __init__(self, message: str) -> None:
        super().__init__(message, field="key")


class NotFound(LedgerError, LookupError):
    """There is no such portfolio, position or decision."""

    code = "not_found"


class WrongState(LedgerError):
    """The position (or drift) exists, but its state does not allow this, for example releasing a closed one."""

    code = "wrong_state"


class Denied(LedgerError):
    """Raised by `Decision.raise_for_denial`. The decision stands in `decision`; it is final for its key."""

    code = "denied"

    def __init__(self, decision: "Decision") -> None:
        super().__init__(
            f"{decision.command} {decision.key!r} denied: {decision.reason} (bound by {decision.binding or 'nothing'})"
        )
        self.decision = decision

    def __reduce__(self) -> "tuple[type[Denied], tuple[Decision]]":
        return Denied, (self.decision,)

    @property
    def reason(self) -> str:
        """The denial's reason, such as `cap_exceeded`."""
        return self.decision.reason or self.code


class Busy(LedgerError):
    """Too much is waiting. Nothing was recorded; retry with the same key after a moment."""

    code = "busy"
    retryable = True


class Unavailable(LedgerError):
    """The database cannot be reached, or a commit's outcome is not known. Retry with the same key: it settles it."""

    code = "unavailable"
    retryable = True


class Closed(LedgerError):
    """The ledger was closed; open it again."""

    code = "closed"


class SchemaOutdated(LedgerError):
    """The database's schema is not the one this version needs. The message names the command to run."""

    code = "schema_outdated"


class InternalError(LedgerError):
    """A defect in this package; the log has the traceback.

    Not `retryable`, because the next try would meet it too. Sent again with the same key, the command still takes
    effect at most once.
    """

    code = "internal_error"
