"""The request to bring the ledger in line with a bot's book: what the bot has open, and where its entry orders rest."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar, NamedTuple

from ledger_sizer.model.arguments import (
    NOTE,
    Argument,
    DeclaredArgument,
    Kind,
    check_arguments,
    declared,
    field_prefix,
    label_text,
)
from ledger_sizer.model.choices import Side
from ledger_sizer.model.command_base import MOMENT, PORTFOLIO, TAGS
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.legs import SIDE
from ledger_sizer.model.tags import GivenTags, Tags, tags_of
from ledger_sizer.model.units import decimal_text, not_negative, parse_decimal, positive

BOOK_MAX = 1000
"""Most entries of a book, and most markets where orders rest."""


class BookEntry(NamedTuple):
    """What a bot has open in one market, or of one position. side: which way, for the leg that the ledger records.

    quantity: coins, unsigned; 0 is flat. price: their average entry price, USD per coin.
    """

    quantity: Decimal
    price: Decimal
    side: Side = "buy"


GivenEntry = BookEntry | Sequence[Any]
GivenBook = Mapping[str, GivenEntry]
"""A book as a caller gives it: `{"BTC/USDT": (quantity, price)}`, or with a side as third."""

Book = Mapping[str, BookEntry]


def _checked_book(value: object, name: str) -> Book:
    if not isinstance(value, Mapping):
        raise InvalidRequest(
            f"{name} must be a mapping such as {{'BTC/USDT': (Decimal('0.5'), Decimal('50000'))}}, got {value!r:.100}",
            field=name,
        )
    if len(value) > BOOK_MAX:
        raise InvalidRequest(f"{name} must have at most {BOOK_MAX} entries, got {len(value)}", field=name)
    book = {}
    for market, entry in value.items():
        with field_prefix(name):
            book[label_text(market, "market")] = _checked_entry(entry, str(market))
    return book


def _checked_entry(value: object, market: str) -> BookEntry:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or not 2 <= len(value) <= 3:
        raise InvalidRequest(
            f"{market} must be (quantity, price), or with a side as third, got {value!r:.100}", field=market
        )
    quantity = not_negative(value[0], f"{market}.quantity")
    side: Side = SIDE.check(value[2], f"{market}.side") if len(value) == 3 else "buy"
    # What is flat needs no price: a bot may not know one.
    price = positive(value[1], f"{market}.price") if quantity else Decimal(0)
    return BookEntry(quantity, price, side)


def _book_to_json(book: Book) -> dict[str, Any]:
    return {
        market: {
            "quantity": decimal_text(entry.quantity),
            "price": decimal_text(entry.price) if entry.quantity else None,
            "side": entry.side,
        }
        for market, entry in book.items()
    }


def _book_from_json(form: Mapping[str, Mapping[str, Any]], _name: str) -> dict[str, tuple[Any, ...]]:
    return {
        market: (
            parse_decimal(entry["quantity"]),
            None if entry.get("price") is None else parse_decimal(entry["price"]),
            entry.get("side") or "buy",
        )
        for market, entry in form.items()
    }


def _checked_markets(value: object, name: str) -> tuple[str, ...]:
    if not isinstance(value, Collection) or isinstance(value, str | bytes):
        raise InvalidRequest(f"{name} must be a list of markets such as ['BTC/USDT'], got {value!r:.100}", field=name)
    if len(value) > BOOK_MAX:
        raise InvalidRequest(f"{name} must have at most {BOOK_MAX} markets, got {len(value)}", field=name)
    return tuple(sorted({label_text(market, name) for market in value}))


BOOK = Kind(
    name="book", check=_checked_book, to_json=_book_to_json, from_json=_book_from_json, metavar="MARKET=QTY@PRICE"
)
MARKETS = Kind(name="markets", check=_checked_markets, to_json=list, metavar="MARKET")


@declared
@dataclass(frozen=True, slots=True)
class Settle:
    """Bring what the ledger has under these tags in line with the bot's book. Level-triggered: it may be asked at will.

    A market that is not in the book is flat. What the book has more than the ledger fills the market's holds, the
    oldest first, and the rest is adopted with these tags; what it has less is closed, the oldest first. The hold of a
    market where orders rest never ends by time; the other holds are freed, unless they were granted after `as_of`. What
    is equal changes nothing, so that a second call, one after a restart or one after an outage does no harm. Positions
    of several legs are named by their position ids.
    """

    arguments: ClassVar[tuple[DeclaredArgument, ...]]

    tags: Annotated[GivenTags, Argument(TAGS, "Of the bot, such as bot=a; all must match. At least one.")]
    book: Annotated[
        GivenBook, Argument(BOOK, "What is open, by market or position id: coins and average entry price in USD.")
    ]
    resting: Annotated[
        Collection[str], Argument(MARKETS, "Markets or position ids of which entry orders rest at the exchange.")
    ] = ()
    portfolio: Annotated[str, Argument(PORTFOLIO, "The pot of capital.", flags=("-p",))] = "main"
    as_of: Annotated[
        datetime | None,
        Argument(MOMENT, "When the book was read; holds granted later stay. Else the default life of a hold ago."),
    ] = None
    reference: Annotated[str | None, Argument(NOTE, "A text of your own; it is kept with each decision.")] = None

    def __post_init__(self) -> None:
        check_arguments(self)

    @property
    def own_tags(self) -> Tags:
        """The tags, validated."""
        return tags_of(self.tags)

    @property
    def entries(self) -> Book:
        """The book, validated."""
        return self.book  # type: ignore[return-value]
