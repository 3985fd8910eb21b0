#!/usr/bin/env python3
"""Write docs/settings.md from the definitions of the settings.

python scripts/settings_reference.py            # write docs/settings.md
python scripts/settings_reference.py --check    # exit 1 if it is not current
"""

import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import Secret, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import NoDecode

from ledger_sizer.config import AppSettings, Settings

TARGET = Path(__file__).resolve().parent.parent / "docs" / "settings.md"

HEAD = """# Settings

Written by `scripts/settings_reference.py` from `ledger_sizer/config.py`; change the settings, not this page.

Every setting is an environment variable, or a line of a `.env` file in the working directory; the environment wins.
`LEDGER_DATABASE_URL` may also be written nested, as `LEDGER__DATABASE_URL`, which wins over the plain name. A value out
of range stops the program at its start and names the variable. Decimals are written plainly (`0.3`, `5000`).

A ledger embedded in a bot uses the settings of Sizing, Trading and Ledger only; those given to `Ledger.open` stand in
place of variables. Variables of the bot's own, such as `EXCHANGE=bybit`, `SERVICE_PORT=web` or `LOG_LEVEL=trace`, do
not stop it.

Caps set at run time live in the database and win over `SIZING_MAX_PORTFOLIO_EXPOSURE`, which only a new portfolio gets.
"""


_MEANINGS = {"LOG_LEVEL": "Least severe events that are logged."}
"""Descriptions of settings whose field has none."""


def main(arguments: list[str]) -> int:
    """Write the page, or with --check compare it. Returns the exit code."""
    text = page()
    if arguments == ["--check"]:
        current = TARGET.exists() and TARGET.read_text() == text
        if not current:
            sys.stderr.write(f"{TARGET.name} is not current: run python scripts/settings_reference.py\n")
        return 0 if current else 1
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(text)
    return 0


def page() -> str:
    """Return the whole page."""
    return "\n".join([HEAD, *_sections()])


def _sections() -> Iterator[str]:
    ungrouped = []
    for name, field in AppSettings.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Settings):
            yield _section(kind)
        else:
            ungrouped.append(_row(name.upper(), field))
    yield "## The process\n\n" + _table(ungrouped)


def _section(settings: type[Settings]) -> str:
    prefix = settings.model_config.get("env_prefix", "")
    rows = [_row(f"{prefix}{name}".upper(), field) for name, field in settings.model_fields.items()]
    about = (settings.__doc__ or "").strip()
    return f"## {prefix.rstrip('_').capitalize()}\n\n{about}\n\n{_table(rows)}"


def _table(rows: list[str]) -> str:
    return "\n".join(["| variable | default | values | meaning |", "|---|---|---|---|", *rows, ""])


def _row(variable: str, field: FieldInfo) -> str:
    cells = (f"`{variable}`", _default(field), _values(field), field.description or _MEANINGS[variable])
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ("", (), [], Secret({})):
        return "none"
    if isinstance(value, SecretStr):
        return "a secret"
    if isinstance(value, frozenset):
        return f"`{json.dumps(sorted(value))}`"  # as it is written in an environment variable
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _values(field: FieldInfo) -> str:
    named = NoDecode in field.metadata and get_origin(field.annotation) is tuple
    kind = "names, with commas between" if named else _kind(field.annotation)
    signs = {"ge": "from", "gt": "above", "le": "to", "lt": "below"}
    bounds = [f"{word} {bound}" for sign, word in signs.items() for bound in _bounds(field, sign)]
    return " ".join([kind, *bounds])


def _bounds(field: FieldInfo, sign: str) -> list[Any]:
    return [getattr(rule, sign) for rule in field.metadata if getattr(rule, sign, None) is not None]


def _kind(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation) if part is not type(None))
    if origin is Secret:
        return "JSON object, secret"
    if origin is tuple:
        return "JSON list"
    words = {bool: "`true`, `false`", int: "whole number", Decimal: "decimal", float: "number", str: "text"}
    return words.get(annotation, "secret" if annotation is SecretStr else getattr(annotation, "__name__", "text"))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
