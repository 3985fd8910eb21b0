"""Pages of listings: how many rows a caller may ask for, where a page begins and where the next one does."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from ledger_sizer.model.domain import Page
from ledger_sizer.model.errors import InvalidRequest

LIMIT_MAX = 1000
"""Maximum rows of a page."""

EXPOSURE_LIMIT_MAX = 10_000
"""Maximum scopes of a page of exposure: a row of it is small, and a page is one snapshot."""

R = TypeVar("R")
T = TypeVar("T")


def require_limit(value: object, most: int = LIMIT_MAX, field: str = "limit") -> int:
    """Return the number of rows. Raises `InvalidRequest` unless it is 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidRequest(f"{field} must be 1 to {most}, got {value!r}", field=field)
    return value


def cursor_numbers(cursor: object, parts: int, field: str = "cursor") -> tuple[int, ...]:
    """Return the numbers of a cursor `1:2:...` with this many parts. Raises `InvalidRequest` for anything else."""
    texts = cursor.split(":") if isinstance(cursor, str) else []
    if len(texts) != parts or not all(text.isascii() and text.isdigit() and len(text) <= 18 for text in texts):
        raise InvalidRequest(f"{field} must come from the page before, got {cursor!r:.60}", field=field)
    return tuple(int(text) for text in texts)


def page_of(rows: Sequence[R], limit: int, item: Callable[[R], T], cursor: Callable[[R], object]) -> Page[T]:
    """Return the page of the first `limit` rows. rows: one more than `limit` where a further page follows."""
    items = tuple(item(row) for row in rows[:limit])
    return Page(items, str(cursor(rows[limit - 1])) if len(rows) > limit else None)
