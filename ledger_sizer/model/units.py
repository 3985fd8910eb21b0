"""Converts between Decimal and scaled integers. The only module that rounds money.

Money is stored as whole units of 1e-8 USD (`_e8`) in a 64-bit integer on both databases, because SQLite keeps
`Numeric` as a binary float and loses digits. Prices and quantities stay exact decimal text.

Rounding directions are fixed, never to nearest. A budget rounds down: a caller may not spend more than the formula
gave. A notional rounds up: the ledger counts at least what is at risk. A quantity rounds down to its step.
"""

from contextlib import AbstractContextManager
from decimal import ROUND_DOWN, Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from math import lcm

from ledger_sizer.model.errors import InvalidRequest

USD_DECIMALS = 8
USD_SCALE = 10**USD_DECIMALS
E8 = 10**8
E8_MAX = 2**63 - 1

# Bounds on accepted numbers. They are far wider than any market needs, and keep arithmetic exact at PRECISION:
# a value has at most 30 digits before and 36 after the point, a product of two at most 132 digits.
_ADJUSTED_MAX = 29
_EXPONENT_MIN = -36
PRECISION = 150

# Every field is given: what is left out would come from `decimal.DefaultContext`, which an application may change.
_CONTEXT = Context(
    prec=PRECISION, rounding=ROUND_DOWN, Emin=-999_999, Emax=999_999, capitals=1, clamp=0, flags=[],
    traps=[InvalidOperation, DivisionByZero, Overflow],
)  # fmt: skip


def exact_arithmetic() -> AbstractContextManager[Context]:
    """Return a decimal context wide enough that no product or floor division here is inexact.

    Libraries (ccxt among them) change the thread's context, so arithmetic never relies on it. What rounds needs it:
    `+ - * / // %`, a unary minus, `abs`, `sum`, `round`, and the methods of Decimal. Comparisons, `min`, `max`, `int`
    and the texts of `decimal_text` are exact in any context.
    """
    return localcontext(_CONTEXT)


def parse_decimal(text: str) -> Decimal:
    """Return the number in a text, exactly. Raises `InvalidOperation` for what is none, whatever the thread traps."""
    return Decimal(text, _CONTEXT)


def exact_decimal(value: object, field: str) -> Decimal:
    """Return `value` as a Decimal, or raise `InvalidRequest` naming `field`.

    Accepts Decimal and int. Refuses float (0.1 is not a tenth), bool, NaN, infinities, and magnitudes outside
    1e-36 .. 1e30, which no price, quantity or budget has.
    """
    if type(value) is not Decimal:
        if isinstance(value, Decimal):
            value = Decimal(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            if abs(value) >= 10 ** (_ADJUSTED_MAX + 1):
                raise InvalidRequest(f"{field} is out of range: more than {_ADJUSTED_MAX + 1} digits", field=field)
            return Decimal(value)
        else:
            kind = type(value).__name__
            hint = "; write Decimal('0.1'), not 0.1" if isinstance(value, float) else ""
            raise InvalidRequest(f"{field} must be a Decimal, got {kind} {value!r}{hint}", field=field)
    if not value.is_finite():
        raise InvalidRequest(f"{field} must be a finite number, got {shown(value)}", field=field)
    exponent = value.as_tuple().exponent
    if value and (value.adjusted() > _ADJUSTED_MAX or exponent < _EXPONENT_MIN):  # type: ignore[operator]
        raise InvalidRequest(
            f"{field} is out of range: {shown(value, '.6E')} (at most {_ADJUSTED_MAX + 1} digits before the point, "
            f"{-_EXPONENT_MIN} after)",
            field=field,
        )
    return value if value else Decimal(0)


def shown(value: Decimal, form: str = "") -> str:
    """Return a number as messages show it. Its rounding and the letter of its exponent are those of any thread."""
    with exact_arithmetic():
        return format(value, form)


def positive(value: object, field: str) -> Decimal:
    """Return `exact_decimal(value)`; raise `InvalidRequest` unless it is above zero."""
    number = exact_decimal(value, field)
    if number <= 0:
        raise InvalidRequest(f"{field} must be above 0, got {shown(number)}", field=field)
    return number


def not_negative(value: object, field: str) -> Decimal:
    """Return `exact_decimal(value)`; raise `InvalidRequest` if it is below zero."""
    number = exact_decimal(value, field)
    if number < 0:
        raise InvalidRequest(f"{field} must be 0 or above, got {shown(number)}", field=field)
    return number


def usd_floor_e8(value: Decimal, field: str = "amount_usd") -> int:
    """Convert USD to whole 1e-8 USD, rounded down (towards minus infinity). Raise `InvalidRequest` beyond 64 bits."""
    return _require_64_bits(floor_e8(value), value, field)


def floor_e8(value: Decimal) -> int:
    """Convert USD to whole 1e-8 USD, rounded down (towards minus infinity), of any size."""
    scaled = value.scaleb(USD_DECIMALS, _CONTEXT)
    whole = int(scaled)
    return whole - 1 if scaled < whole else whole


def usd_ceil_e8(value: Decimal, field: str = "amount_usd") -> int:
    """Convert USD to whole 1e-8 USD, rounded up. Raise `InvalidRequest` beyond 64 bits (about 92 billion USD)."""
    with exact_arithmetic():
        scaled = value.scaleb(USD_DECIMALS)
        whole = int(scaled)
        if scaled > whole:
            whole += 1
    return _require_64_bits(whole, value, field)


def _require_64_bits(whole: int, value: Decimal, field: str) -> int:
    if not -E8_MAX <= whole <= E8_MAX:
        most = E8_MAX // USD_SCALE
        raise InvalidRequest(f"{field} does not fit: {shown(value)} USD (at most {most} USD either way)", field=field)
    return whole


def usd(e8: int) -> Decimal:
    """Convert whole 1e-8 USD to an exact Decimal in USD without trailing zeros. Independent of the thread's context."""
    whole, rest = divmod(e8, USD_SCALE)
    if rest == 0:
        return Decimal(whole)
    digits = str(e8)
    kept = digits.rstrip("0")
    return Decimal(f"{kept}E-{USD_DECIMALS - len(digits) + len(kept)}")


def usd_text(e8: int) -> str:
    """Return `decimal_text(usd(e8))`, the shortest plain decimal text, without building a `Decimal`."""
    whole, rest = divmod(abs(e8), USD_SCALE)
    sign = "-" if e8 < 0 else ""
    if rest == 0:
        return f"{sign}{whole}"
    fraction = f"{rest:0{USD_DECIMALS}}".rstrip("0")
    return f"{sign}{whole}.{fraction}"


def notional_e8(quantity: Decimal, price: Decimal) -> int:
    """Return the notional of one leg in 1e-8 USD: quantity (base units) x price (USD per base unit), rounded up."""
    with exact_arithmetic():
        return usd_ceil_e8(quantity * price, "notional_usd")


def decimal_text(value: Decimal) -> str:
    """Return the shortest plain decimal text: `1E+3` -> `1000`, `0.50` -> `0.5`. Equal values give equal text."""
    text = format(value, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in {"-0", ""} else text


def floor_to_step(value: Decimal, step: Decimal) -> Decimal:
    """Return the largest multiple of `step` not above `value`. Exact; `sizing.round_to_step` also validates."""
    with exact_arithmetic():
        steps, rest = divmod(value, step)
        if rest < 0:
            steps -= 1
        return steps * step


def common_step(step_a: Decimal, step_b: Decimal) -> Decimal:
    """Return the least common multiple of two steps: its multiples are multiples of both (0.3 and 0.2 give 0.6)."""
    if step_a == step_b:
        return step_a
    places = max(-_exponent(step_a), -_exponent(step_b), 0)
    with exact_arithmetic():
        whole = lcm(int(step_a.scaleb(places)), int(step_b.scaleb(places)))
        return Decimal(whole).scaleb(-places)


def _exponent(value: Decimal) -> int:
    exponent = value.as_tuple().exponent
    assert isinstance(exponent, int), "exact() admits finite numbers only"
    return exponent
