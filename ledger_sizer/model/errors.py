"""The error tree of this package. Errors that only one module raises are defined there, as subclasses of these.

    LedgerError
    ├── InvalidRequest      the request is invalid; names the field
    │   └── KeyReused       the idempotency key was used for a different request
    ├── NotFound            no such portfolio, position or decision
    ├── WrongState          the state of the position (or drift) does not allow this
    ├── Denied              a denial, raised by `Decision.raise_for_denial`
    ├── Forbidden           the API key does not allow this; nothing was recorded
    ├── Busy                the queue is full or the database is contended; nothing was recorded, retry
    ├── Unavailable         the database is unreachable, or the outcome unknown; retry with the same key
    ├── Closed              the ledger was closed
    ├── SchemaOutdated      the database is behind (or ahead of) this version's migrations
    └── InternalError       a defect in this package; nothing was recorded for the command

Errors carry a stable `code`, which HTTP, the command line and the client library share. `granted` is False on every
error, so that a careless `if result.granted` stays safe.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NoReturn

from ledger_sizer.model.denials import GROUP_DENIED, reason_words

if TYPE_CHECKING:
    from ledger_sizer.model.decisions import Decision


class LedgerError(Exception):
    """Base of all errors of this package. `code` is stable, `retryable` says whether the same key may be sent again."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    granted: ClassVar[bool] = False
    outcome: ClassVar[str] = "error"
    told_always: ClassVar[str | None] = None
    """What is told instead of every message of this class that was not given as `told`."""

    def __init__(self, message: str = "", *, told: str | None = None) -> None:
        super().__init__(message)
        self._told = told

    @property
    def told(self) -> str:
        """What a caller over HTTP is told. The message may also name the database's address; that is for the log."""
        return self._told or self.told_always or str(self)

    @property
    def reason(self) -> str:
        """The code, under the attribute name of a `Decision`, so that all results of a batch are read the same way."""
        return self.code

    def raise_for_denial(self) -> NoReturn:
        """Raise this error. Same method as on a `Decision`, whose place it takes in a batch's results."""
        raise self


class InvalidRequest(LedgerError, ValueError):
    """The request is invalid. `field` names the argument; the message gives its value and what is accepted."""

    code = "invalid_request"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class KeyReused(InvalidRequest):
    """The idempotency key was used before: for another request, or by another client. Use a new key for a new request.

    seq: of the decision that the key got. position_id: of the position that it concerns. Both are None where the key
    belongs to another client. `Ledger.lookup` returns the decision.
    """

    code = "idempotency_key_reused"

    def __init__(self, message: str, *, seq: int | None = None, position_id: str | None = None) -> None:
        super().__init__(message, field="key")
        self.seq = seq
        self.position_id = position_id


class NotFound(LedgerError, LookupError):
    """There is no such portfolio, position or decision."""

    code = "not_found"


class WrongState(LedgerError):
    """The position (or drift) exists, but its state does not allow this, for example releasing a closed one."""

    code = "wrong_state"


class Forbidden(LedgerError):
    """The API key does not allow this: its role, its portfolios, or the tags that it is bound to. Nothing was recorded.

    field: the argument at fault, where it is one, such as `tags.bot`.
    """

    code = "forbidden"

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


class Denied(LedgerError):
    """Raised by `Decision.raise_for_denial`. `decision` holds the decision, which is final for its key."""

    code = "denied"

    def __init__(self, decision: "Decision") -> None:
        by = "denied by" if decision.reason == GROUP_DENIED else "bound by"
        super().__init__(
            f"{decision.command} {decision.key!r} denied: {decision.reason} ({by} {decision.binding or 'nothing'}): "
            f"{reason_words(decision.reason or '', decision.binding, decision.frozen_note)}"
        )
        self.decision = decision

    def __reduce__(self) -> "tuple[type[Denied], tuple[Decision]]":
        return Denied, (self.decision,)

    @property
    def reason(self) -> str:
        """The denial's reason, such as `cap_exceeded`."""
        return self.decision.reason or self.code


class Busy(LedgerError):
    """The queue is full or the database is contended. Nothing was recorded; retry with the same key after a moment."""

    code = "busy"
    retryable = True


class Unavailable(LedgerError):
    """The database is unreachable, or a commit's outcome is unknown. A retry with the same key gets the outcome.

    Over HTTP its message is told only where it is given as `told` too: most are a driver's and name hosts and files.
    """

    code = "unavailable"
    retryable = True
    told_always: ClassVar[str | None] = "the database is away; retry with the same key, it settles what happened"


class Closed(LedgerError):
    """The ledger was closed; open it again."""

    code = "closed"


class SchemaOutdated(LedgerError):
    """The database's schema is not the one this version needs. The message names the command to run."""

    code = "schema_outdated"
    told_always = "the database's schema is not the one that this version needs"


class InternalError(LedgerError):
    """A defect in this package; the log has the traceback.

    Not `retryable`, because a retry would meet the same defect. Sent again with the same key, the command still takes
    effect at most once.
    """

    code = "internal_error"
    log_fields: Mapping[str, str] = {}
    """What the log says beside the traceback: the command that met the defect."""
