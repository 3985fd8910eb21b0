"""The file of caps: TOML that people keep with their configuration, and apply.

    [portfolios.main]
    cap = "5000"

    [portfolios.main.scopes]
    "bot=a" = { guarantee = "1500", max_position_usd = "300" }
    "venue=*" = { cap = "1000" }

Amounts are text. A name that this version does not know is an error: what a later version can limit must not be lost.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, NoReturn

from ledger_sizer.model.arguments import AMOUNT_PATTERN
from ledger_sizer.model.caps import Caps, Limits, require_guarantees
from ledger_sizer.model.commands import SetCap
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.names import portfolio_name
from ledger_sizer.model.tags import PORTFOLIO_SCOPE
from ledger_sizer.model.units import USD_DECIMALS, decimal_text, parse_decimal, usd, usd_floor_e8

_HEADER = """\
# What each portfolio and each of its scopes may have, in USD.
#
#   ledger-sizer caps apply FILE --dry-run   shows what would change
#   ledger-sizer caps apply FILE             brings every portfolio named here to exactly this; the others stay
#
# cap                the most exposure, held and open. The portfolio's own must be there.
# guarantee          what the scope can always have. Guarantees of a portfolio stand on one tag name, and their sum is
#                    at most its cap.
# share_of_equity    instead of a cap: the fraction of the accounts' equity that it follows, such as "0.8".
# max_position_usd   the most one position may be, instead of the settings' maximum.
#
# A scope is one value of a tag, such as "venue=bybit". The cap of "venue=*" is that of every venue without its own.
# Amounts stand in quotes, with at most 8 decimals: "1500.50". What is not written here is removed.
"""

_AMOUNT = re.compile(AMOUNT_PATTERN)
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_OF_PORTFOLIO = ("cap", "max_position_usd", "share_of_equity")


class _Float(str):
    """The text of what TOML reads as a float: it must not become one, and the error shows it as it is written."""

    __slots__ = ()


def caps_file_text(caps: Mapping[str, Caps]) -> str:
    """Return the file's text, portfolios and scopes by name. caps: by portfolio; each has its own cap."""
    return "".join([_HEADER, *(_portfolio_text(*one) for one in caps_form(caps)["portfolios"].items())])


def caps_form(caps: Mapping[str, Caps]) -> dict[str, Any]:
    """Return what the file says, as JSON."""
    forms: dict[str, Any] = {}
    for portfolio, of in sorted(caps.items()):
        scopes = {scope: dict(_amounts(limits)) for scope, limits in sorted(of.items()) if scope != PORTFOLIO_SCOPE}
        forms[portfolio] = {**dict(_amounts(of[PORTFOLIO_SCOPE])), "scopes": scopes}
    return {"portfolios": forms}


def read_caps_file(data: bytes) -> dict[str, dict[str, Limits]]:
    """Return the caps by portfolio. Raises `InvalidRequest` that names the place: a line, or a name with dots."""
    try:
        found = tomllib.loads(data.decode("utf-8-sig"), parse_float=_Float)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InvalidRequest(f"the file is no TOML: {error}", field="file") from None
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        message = f"the file must be UTF-8, but line {line} is not; save it as UTF-8"
        raise InvalidRequest(message, field="file") from None
    _only_known(found, ("portfolios",), "")
    portfolios = _table(found.get("portfolios", {}), "portfolios", "a table for each portfolio")
    return {name: _read_portfolio(name, form, f"portfolios.{_key(name)}") for name, form in portfolios.items()}


def _portfolio_text(portfolio: str, form: Mapping[str, Any]) -> str:
    lines = ["", f"[portfolios.{_key(portfolio)}]"]
    lines += [f"{name} = {_quoted(text)}" for name, text in form.items() if name != "scopes"]
    if form["scopes"]:
        lines += ["", f"[portfolios.{_key(portfolio)}.scopes]"]
    for scope, amounts in form["scopes"].items():
        pairs = ", ".join(f"{name} = {_quoted(text)}" for name, text in amounts.items())
        lines.append(f"{_quoted(scope)} = {{ {pairs} }}")
    return "\n".join(lines) + "\n"


def _amounts(limits: Limits) -> list[tuple[str, str]]:
    """Return what is set, by name."""
    return [
        (name, decimal_text(amount))
        for name, amount in zip(Limits._fields, limits, strict=True)
        if amount is not None
    ]  # fmt: skip


def _quoted(text: str) -> str:
    """Return a TOML string. Labels have no control characters, so JSON's escapes are those of TOML."""
    return json.dumps(text, ensure_ascii=False)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _quoted(name)


def _read_portfolio(name: str, form: Any, place: str) -> dict[str, Limits]:
    with _placed(place):
        portfolio_name(name)
    table = _table(form, place, 'its cap, such as cap = "5000"')
    if "guarantee" in table:
        _refuse(f"{place}.guarantee", "a guarantee is of one scope, not of the whole; write it under scopes")
    _only_known(table, (*_OF_PORTFOLIO, "scopes"), place)
    if "cap" not in table and "share_of_equity" not in table:
        _refuse(f"{place}.cap", 'is missing: a portfolio always has a cap; write cap = "5000"')
    caps = {PORTFOLIO_SCOPE: _read_limits(PORTFOLIO_SCOPE, {n: table[n] for n in _OF_PORTFOLIO if n in table}, place)}
    scopes = _table(table.get("scopes", {}), f"{place}.scopes", "a table for each scope")
    for scope, limits in scopes.items():
        inside = f"{place}.scopes.{_key(scope)}"
        if scope == PORTFOLIO_SCOPE:
            _refuse(inside, f"what the whole portfolio may have stands in [{place}]; move it there")
        if found := _table(limits, inside, 'a table such as { cap = "1000" }'):
            caps[scope] = _read_limits(scope, found, inside)
    try:
        require_guarantees(caps)
    except InvalidRequest as error:
        scope, dot, argument = str(error.field).rpartition(".")
        _refuse(f"{place}.scopes.{_key(scope)}.{argument}" if dot else f"{place}.{argument}", str(error))
    return caps


def _read_limits(scope: str, form: Mapping[str, Any], place: str) -> Limits:
    _only_known(form, Limits._fields, place)
    limits = Limits(**{name: _amount(value, f"{place}.{name}") for name, value in form.items()})
    with _placed(place):
        # What the command would refuse is refused before any command is sent.
        SetCap(key="check", scope=scope, **{name: getattr(limits, name) for name in form})
    return limits


def _amount(value: object, place: str) -> Decimal:
    if not isinstance(value, str) or isinstance(value, _Float):
        number = isinstance(value, _Float | int) and not isinstance(value, bool)
        what = f"the number {value!s:.60}" if number else f"{value!r:.60}"
        written = str(value) if number and _AMOUNT.fullmatch(str(value)) else "1500.50"
        _refuse(place, f'must be an amount in quotes, got {what}; write {place.rpartition(".")[2]} = "{written}"')
    if not _AMOUNT.fullmatch(value):
        _refuse(place, f'must be an amount such as "1500.50", got {value!r:.60}; leave it out for none')
    amount = parse_decimal(value)
    with _placed(place):
        kept = usd(usd_floor_e8(amount, "amount"))
    if kept != amount:
        _refuse(place, f"must have at most {USD_DECIMALS} decimals, got {value!r:.60}; write fewer")
    return amount


def _table(value: Any, place: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        _refuse(place, f"must be {what}, got {value!r:.60}")
    return value


def _only_known(table: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for name in table:
        if name not in known:
            where = f"{place}.{_key(name)}" if place else _key(name)
            _refuse(where, f"is not known here; known are {', '.join(known)}")


@contextmanager
def _placed(place: str) -> Iterator[None]:
    """Name the place in the file in an error of the command that it makes."""
    try:
        yield
    except InvalidRequest as error:
        _refuse(f"{place}.{error.field}" if error.field in Limits._fields else place, str(error))


def _refuse(place: str, what: str) -> NoReturn:
    raise InvalidRequest(f"{place}: {what}", field=place) from None
