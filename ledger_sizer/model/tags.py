"""Tags of a position and the scopes they stand for. Each distinct set is validated and encoded once (cached)."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from reprlib import repr as short_repr
from typing import Any, TypeVar

from ledger_sizer.model.arguments import encode_sorted, label_text
from ledger_sizer.model.errors import InvalidRequest

PORTFOLIO_SCOPE = "portfolio"
"""Name of the scope of the whole portfolio; every other scope is named `dimension=value`."""

ANY_VALUE = "*"
"""Stands for every value of a tag name, in the scope of a default cap: `venue=*`. No tag has it as its value."""

EXTERNAL_TAG = "external"
"""Tag of a position that counts what an exchange shows and nobody reserved. A reservation cannot have it."""

TAGS_MAX = 16
TAG_VALUES_MAX = 16
TAGS_LENGTH_MAX = 2000
"""Longest canonical text of all tags together. History is searched by it, and PostgreSQL indexes no longer ones."""

TAG_NAME = r"[a-z][a-z0-9_]{0,31}"
"""Pattern of a tag name, which is also the dimension of a scope."""

_DIMENSION = re.compile(TAG_NAME)

TagValue = str | tuple[str, ...]
GivenTags = Mapping[str, str | Collection[str]]
"""Tags as a caller gives them: a value is a text, or a list, tuple or set of texts."""

V_co = TypeVar("V_co", covariant=True)


class FrozenMapping(Mapping[str, V_co]):
    """A frozen mapping of names. text: its canonical JSON."""

    __slots__ = ("_values", "text")

    def __init__(self, values: dict[str, V_co], text: str) -> None:
        """Use `tags_of` or `details_of`, which validate."""
        self._values = values
        self.text = text

    def __getitem__(self, name: str) -> V_co:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def __hash__(self) -> int:
        return hash(self.text)


class Tags(FrozenMapping[TagValue]):
    """The tags of a position. scopes: the scopes it counts in, the portfolio first.

    A value is a text, or a tuple of two or more texts in order: the position then counts in the scope of each.
    """

    __slots__ = ("scopes",)

    def __init__(self, values: dict[str, TagValue], text: str) -> None:
        """Use `tags_of`, which validates."""
        super().__init__(values, text)
        scopes = [f"{name}={value}" for name in sorted(values) for value in self.values_of(name)]
        self.scopes = (PORTFOLIO_SCOPE, *scopes)

    def values_of(self, name: str) -> tuple[str, ...]:
        """Return the values of a tag, in order; none where it is absent."""
        value = self._values.get(name, ())
        return value if isinstance(value, tuple) else (value,)

    def only(self, name: str) -> str | None:
        """Return the value of a tag that has exactly one, else None."""
        value = self._values.get(name)
        return value if isinstance(value, str) else None

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every name with each of its values, in order."""
        return [(name, value) for name in self._values for value in self.values_of(name)]

    def having(self, name: str, values: str | Iterable[str]) -> "Tags":
        """Return the tags with one or more values of a name beside those that it has.

        Their number has no bound. Raises `InvalidRequest` where all of them together are too long.
        """
        return _with_values(self, name, (values,) if isinstance(values, str) else tuple(values))

    def to_json(self) -> dict[str, Any]:
        """Return the tags as JSON has them: several values are a list."""
        return {name: [*value] if isinstance(value, tuple) else value for name, value in self._values.items()}


def tags_of(value: object) -> Tags:
    """Validate tags such as `{"venue": "bybit"}` or `{"venue": ["bybit", "okx"]}`.

    At most 16, with names of lower case letters, digits and `_`. A value is a text, or a list, tuple or set of 1 to 16
    texts, whose order and repetitions do not count: one value in a list is the same as the text. Altogether at most
    2,000 characters of JSON.
    """
    return value if type(value) is Tags else _tags_from(value, _validated_tags)


def tags_from_json(form: object) -> Tags:
    """Return the tags that a service wrote: validated, but of any number, because some are filled in."""
    return _tags_from(form, _written_tags)


def _tags_from(value: object, validated: Callable[[Any], Tags]) -> Tags:
    if type(value) is not dict and not isinstance(value, Mapping):  # the first is quick
        raise InvalidRequest(
            f"tags must be a mapping such as {{'venue': 'bybit'}}, got {short_repr(value)}", field="tags"
        )
    try:
        return validated(tuple(value.items()))
    except TypeError:  # a name or a value has no hash, such as a list
        items = tuple([(name, tuple(tag) if isinstance(tag, list | set) else tag) for name, tag in value.items()])
    try:
        return validated(items)
    except TypeError:
        for name, tag in items:
            if is_dimension(name):
                _plain_value(tag, f"tags.{name}")
        raise InvalidRequest(f"tags must map text to text, got {short_repr(dict(value))}", field="tags") from None


_Items = tuple[tuple[Any, Any], ...]


@lru_cache(maxsize=8192)
def _validated_tags(items: _Items) -> Tags:
    if len(items) > TAGS_MAX:
        raise InvalidRequest(f"at most {TAGS_MAX} tags, got {len(items)}", field="tags")
    return _of_bounded_length(_checked_tags(items, TAG_VALUES_MAX))


@lru_cache(maxsize=8192)
def _written_tags(items: _Items) -> Tags:
    return _checked_tags(items, None)


def _checked_tags(items: _Items, values_max: int | None) -> Tags:
    # Plain text, because the cache also answers for equal tags of another text type, such as an Enum.
    plain: dict[str, TagValue] = {}
    for name, tag in items:
        if not is_dimension(name):
            raise InvalidRequest(
                f"tag name must be lower case letters, digits and '_' (not 'portfolio'), got {name!r}", field="tags"
            )
        plain[str.__str__(name)] = _plain_value(tag, f"tags.{name}", values_max)
    return _tags(plain)


def _plain_value(value: object, field: str, values_max: int | None = None) -> TagValue:
    """Return a text as it is, and several texts in order, each once."""
    if not isinstance(value, list | tuple | set | frozenset):
        return _tag_value(value, field)
    if not value:
        raise InvalidRequest(f"{field} has no value in its list; name one, or leave the tag out", field=field)
    if values_max is not None and len(value) > values_max:
        raise InvalidRequest(f"{field} must have at most {values_max} values, got {len(value)}", field=field)
    return _joined([_tag_value(one, field) for one in value])


def _tag_value(value: object, field: str) -> str:
    """Return one value of a tag. Raises `InvalidRequest` for anything but a text, and for `*`."""
    if value == ANY_VALUE:
        raise InvalidRequest(
            f"{field} cannot be '*', which stands for every value where a default cap is set; name the value, "
            "or leave the tag out",
            field=field,
        )
    return label_text(value, field)


def _joined(texts: Collection[str]) -> TagValue:
    several = tuple(sorted({*texts}))
    return several[0] if len(several) == 1 else several


def _tags(values: dict[str, TagValue]) -> Tags:
    values = dict(sorted(values.items()))
    return Tags(values, encode_sorted(values))


def _of_bounded_length(tags: Tags) -> Tags:
    if len(tags.text) <= TAGS_LENGTH_MAX:
        return tags
    raise InvalidRequest(
        f"tags must have at most {TAGS_LENGTH_MAX} characters of JSON altogether, got {len(tags.text)}; "
        "use fewer or shorter values",
        field="tags",
    )


@lru_cache(maxsize=8192)
def _with_values(tags: Tags, name: str, values: tuple[str, ...]) -> Tags:
    present = tags.values_of(name)
    if set(present).issuperset(values):
        return tags
    more = [_tag_value(value, f"tags.{name}") for value in values]
    return _of_bounded_length(_tags({**tags, name: _joined([*present, *more])}))


@lru_cache(maxsize=8192)
def stored_tags(text: str) -> Tags:
    """Return the tags of a stored canonical text."""
    values = json.loads(text)
    if '":[' in text:  # nearly no text without a list
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Tags(values, text)


def text_has_tag(text: str, name: str, value: str) -> bool:
    """Whether a stored canonical text has this value of a tag, alone or among several."""
    alone, list_start, among = tag_texts(name, value)
    return alone in text or (list_start in text and among in text and value in stored_tags(text).values_of(name))


def tag_texts(name: str, value: str) -> tuple[str, str, str]:
    """Return how a canonical text has this value alone, how it begins several values, and how it has one of them.

    The first is in a text only where the tag has this value and no other: what stands between quotation marks is
    escaped, so that no other text can look like it. The others tell only where it is worth to look closely.
    """
    quoted, among = encode_sorted(name), encode_sorted(value)
    return f"{quoted}:{among}", f"{quoted}:[", among


def is_dimension(name: object) -> bool:
    """Return True if `name` is a valid tag name."""
    return isinstance(name, str) and _DIMENSION.fullmatch(name) is not None and name != PORTFOLIO_SCOPE


def account_scope(venue: str, account: str) -> str:
    """Return the name of an exchange account's scope: `account=bybit/main`."""
    return f"account={venue}/{account}"


def account_of_scope(name: str) -> tuple[str, str]:
    """Return venue and account of an exchange account's scope."""
    venue, _, account = name.partition("=")[2].partition("/")
    return venue, account


def is_default_scope(name: str) -> bool:
    """Return True for the scope of a default cap, such as `venue=*`."""
    return name.endswith("=*") and name.count("=") == 1


def scope_name(value: object) -> str:
    """Return a valid scope name: `portfolio`, or `dimension=value` such as `venue=bybit`; else raise."""
    if value == PORTFOLIO_SCOPE:
        return PORTFOLIO_SCOPE
    if isinstance(value, str):
        dimension, _, tag = value.partition("=")
        if tag and is_dimension(dimension):
            label_text(tag, "scope")
            return str.__str__(value)
    raise InvalidRequest(f"scope must be 'portfolio' or like 'venue=bybit', got {value!r}", field="scope")


NO_TAGS = tags_of({})
