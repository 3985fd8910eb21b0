"""Tags of a position and the scopes they stand for. Each distinct set is validated and encoded once (cached)."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache

from ledger_sizer.model.arguments import encode_sorted, label_text
from ledger_sizer.model.errors import InvalidRequest

PORTFOLIO_SCOPE = "portfolio"
"""Name of the scope of the whole portfolio; every other scope is named `dimension=value`."""

EXTERNAL_TAG = "external"
"""Tag of a position that counts what an exchange shows and nobody reserved. A reservation cannot have it."""

TAGS_MAX = 16

TAG_NAME = r"[a-z][a-z0-9_]{0,31}"
"""Pattern of a tag name, which is also the dimension of a scope."""

_DIMENSION = re.compile(TAG_NAME)


class FrozenTexts(Mapping[str, str]):
    """A frozen mapping of names to texts. text: its canonical JSON."""

    __slots__ = ("_values", "text")

    def __init__(self, values: dict[str, str], text: str) -> None:
        """Use `tags_of` or `details_of`, which validate."""
        self._values = values
        self.text = text

    def __getitem__(self, name: str) -> str:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def __hash__(self) -> int:
        return hash(self.text)


class Tags(FrozenTexts):
    """The tags of a position. scopes: the scopes it counts in, the portfolio first."""

    __slots__ = ("scopes",)

    def __init__(self, values: dict[str, str], text: str) -> None:
        """Use `tags_of`, which validates."""
        super().__init__(values, text)
        self.scopes = (PORTFOLIO_SCOPE, *[f"{name}={values[name]}" for name in sorted(values)])


def tags_of(value: object) -> Tags:
    """Validate tags such as `{"venue": "bybit"}`: at most 16, names of lower case letters, digits and `_`."""
    if type(value) is Tags:
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"tags must be a mapping such as {{'venue': 'bybit'}}, got {value!r}", field="tags")
    try:
        return _validated_tags(tuple(value.items()))
    except TypeError:  # a name or a value that has no hash
        for name, tag in value.items():
            if is_dimension(name):
                label_text(tag, f"tags.{name}")
        raise InvalidRequest(f"tags must map text to text, got {dict(value)!r}", field="tags") from None


@lru_cache(maxsize=8192)
def _validated_tags(items: tuple[tuple[str, str], ...]) -> Tags:
    if len(items) > TAGS_MAX:
        raise InvalidRequest(f"at most {TAGS_MAX} tags, got {len(items)}", field="tags")
    plain: dict[str, str] = {}
    for name, tag in items:
        if not is_dimension(name):
            raise InvalidRequest(
                f"tag name must be lower case letters, digits and '_' (not 'portfolio'), got {name!r}", field="tags"
            )
        # Plain text, because the cache also answers for equal tags of another text type, such as an Enum.
        plain[str.__str__(name)] = label_text(tag, f"tags.{name}")
    values = dict(sorted(plain.items()))
    return Tags(values, encode_sorted(values))


@lru_cache(maxsize=8192)
def stored_tags(text: str) -> Tags:
    """Return the tags of a stored canonical text."""
    return Tags(json.loads(text), text)


def is_dimension(name: object) -> bool:
    """Return True if `name` is a valid tag name."""
    return isinstance(name, str) and _DIMENSION.fullmatch(name) is not None and name != PORTFOLIO_SCOPE


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
