"""Details of a remark: names and texts beside its note, such as the settings in force at a start."""

import re
from collections.abc import Iterator, Mapping

from ledger_sizer.model.arguments import Kind, encode_sorted, label_text
from ledger_sizer.model.errors import InvalidRequest

DETAILS_MAX = 64
DETAIL_LENGTH_MAX = 300
DETAIL_NAME = r"[a-z][a-z0-9_.]{0,63}"

_NAME = re.compile(DETAIL_NAME)


class Details(Mapping[str, str]):
    """A frozen mapping of names to texts. text: its canonical JSON."""

    __slots__ = ("_values", "text")

    def __init__(self, values: dict[str, str]) -> None:
        """Use `details_of`, which validates."""
        self._values = values
        self.text = encode_sorted(values)

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


def is_detail_name(name: object) -> bool:
    """Return True if `name` may name a detail."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None


def details_of(value: object, field: str = "details") -> Details:
    """Validate details: 1 to 64 names of lower case letters, digits, `_` and `.`, each with 1 to 300 characters."""
    if type(value) is Details:
        return value
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{field} must be a mapping of names to texts, got {value!r:.100}", field=field)
    if not 1 <= len(value) <= DETAILS_MAX:
        raise InvalidRequest(f"1 to {DETAILS_MAX} {field}, got {len(value)}", field=field)
    plain: dict[str, str] = {}
    for name, text in value.items():
        if not is_detail_name(name):
            raise InvalidRequest(
                f"a name in {field} must have 1 to 64 lower case letters, digits, '_' or '.', got {name!r:.100}",
                field=field,
            )
        plain[str.__str__(name)] = label_text(text, f"{field}.{name}", length_max=DETAIL_LENGTH_MAX)
    return Details(dict(sorted(plain.items())))


DETAILS = Kind(
    name="details", check=details_of, text=lambda details: details.text, to_json=dict, metavar="NAME=VALUE"
)  # fmt: skip
