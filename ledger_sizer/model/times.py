"""Times: aware UTC datetimes, and whole microseconds since 1970-01-01 UTC as they are stored."""

from datetime import UTC, datetime, timedelta

from ledger_sizer.model.errors import InvalidRequest

UNTIL_KNOWN_US = 253_402_300_799_999_999
"""The expiry of a hold that never ends by time: the last moment of the year 9999, which no clock reaches."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: object, field: str | None = None) -> int:
    """Convert an aware datetime to whole microseconds since 1970 UTC. Refuse a naive one: its zone would be a guess.

    field: the argument that an `InvalidRequest` names.
    """
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidRequest(f"{field or 'a time'} must be a datetime with a time zone, got {moment!r}", field=field)
    return (moment - _EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """Convert microseconds since 1970 UTC to an aware datetime."""
    return _EPOCH + timedelta(microseconds=us)


def time_text(moment: datetime) -> str:
    """Return an aware UTC datetime as ISO 8601 with `Z`."""
    return moment.isoformat().replace("+00:00", "Z")
