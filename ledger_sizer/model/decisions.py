"""Decisions, the records they are stored as, and the hash chain that links the records.

A record's canonical text is its fields in order, joined by 0x1F, with 0x1D for "none". Fields after `trace` that are
none are left out at the end, so that the text of older decisions, which lack these fields, is the same as it was.
Control characters are refused in every input, so the text is unambiguous. The chain is

    hash(n) = SHA-256( hash(n - 1) + 0x1F + text(n) )      hash(0) = 64 zeros

Changing, dropping or reordering any field of any decision changes every later hash.
"""

import json
import re
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, NamedTuple

from ledger_sizer.model.choices import Outcome
from ledger_sizer.model.errors import Denied, LedgerError
from ledger_sizer.model.legs import OrderLeg, legs_of_json, order_of
from ledger_sizer.model.names import position_id
from ledger_sizer.model.times import UNTIL_KNOWN_US, from_us
from ledger_sizer.model.units import E8_MAX, usd, usd_text

GENESIS_HASH = "0" * 64
FIELD_SEPARATOR = "\x1f"
NONE_MARK = "\x1d"
_HASH = re.compile(r"[0-9a-f]{64}")


Fields = tuple[Any, ...]
"""The fields of a `DecisionRecord` in its order: a record, or the plain row of a query. Code that reads a million
of them unpacks rows, because building a record takes as long as reading it.
"""


class DecisionRecord(NamedTuple):
    """One row of the audit chain, in column order.

    `exposure_e8` and `headroom_e8` are the portfolio's before the decision. `actor`, `client` and `reference` are None
    in decisions of versions that did not record them.
    """

    portfolio: str
    seq: int
    command: str
    key: str
    outcome: Outcome
    reason: str | None
    position: int | None
    tags: str
    budget_e8: int | None
    quantity: str | None
    fraction: str | None
    raw_budget: str | None
    held_delta_e8: int
    open_delta_e8: int
    headroom_e8: int | None
    exposure_e8: int
    binding: str | None
    expires_us: int | None
    decided_us: int
    request: str
    trace: str
    actor: str | None = None
    client: str | None = None
    reference: str | None = None
    hash: str = ""

    def logged(self) -> dict[str, object]:
        """Return the fields of the decision's log line."""
        return {
            "portfolio": self.portfolio,
            "seq": self.seq,
            "command": self.command,
            "key": self.key,
            "actor": self.actor,
            "outcome": self.outcome,
            "reason": self.reason,
            "position": self.position,
            "budget_usd": None if self.budget_e8 is None else usd_text(self.budget_e8),
            "quantity": self.quantity,
            "binding": self.binding,
            "exposure_after_usd": usd_text(self.exposure_e8 + self.held_delta_e8 + self.open_delta_e8),
        }

    def decision(self, *, replayed: bool = False) -> "Decision":
        """Return the decision that the caller gets."""
        return Decision(self, replayed)


class Decision:
    """The recorded answer to one command, granted or denied. Only a dry run is not recorded. Immutable.

    A view of its record: figures are converted to `Decimal` (USD, base units) and times to aware datetimes when read.
    """

    __slots__ = ("_orders", "record", "replayed")

    record: DecisionRecord
    replayed: bool
    """True when the key was answered before and this repeats that answer."""
    _orders: tuple[OrderLeg, ...] | None

    def __init__(
        self, record: DecisionRecord, replayed: bool = False, orders: tuple[OrderLeg, ...] | None = None
    ) -> None:
        """Orders: of a record without its trace; None reads them from it."""
        object.__setattr__(self, "record", record)
        object.__setattr__(self, "replayed", replayed)
        object.__setattr__(self, "_orders", orders)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a decision is final: cannot set {name}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a decision is final: cannot delete {name}")

    def __reduce__(self) -> tuple[type["Decision"], tuple[Any, ...]]:
        return Decision, (self.record, self.replayed, self._orders)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Decision) and (self.record, self.replayed) == (other.record, other.replayed)

    def __hash__(self) -> int:
        return hash((self.record, self.replayed))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in DECISION_FIELDS)
        return f"Decision({shown})"

    @property
    def portfolio(self) -> str:
        """The portfolio it belongs to."""
        return self.record.portfolio

    @property
    def seq(self) -> int | None:
        """Place in the portfolio's audit chain, from 1, gapless; None for a dry run, which is not recorded."""
        return self.record.seq or None

    @property
    def command(self) -> str:
        """The verb: one of `commands.COMMANDS`, or `expire`, which the ledger itself records."""
        return self.record.command

    @property
    def key(self) -> str:
        """The caller's idempotency key."""
        return self.record.key

    @property
    def outcome(self) -> Outcome:
        """`granted` or `denied` for a request (reserve, extend), `applied` for a fact or an instruction."""
        return self.record.outcome

    @property
    def reason(self) -> str | None:
        """Why it was denied, one of `denials.DENIAL_REASONS`; None unless denied."""
        return self.record.reason

    @property
    def granted(self) -> bool:
        """True only for a grant. A recorded fact is `applied`, a refusal `denied`."""
        return self.record.outcome == "granted"

    @property
    def position_id(self) -> str | None:
        """The position it concerns; None for a denied reservation and for administration."""
        number = self.record.position
        return None if number is None else position_id(self.record.portfolio, number)

    @property
    def budget(self) -> Decimal | None:
        """USD granted and held: what the orders can cost; None unless granted."""
        return _usd(self.record.budget_e8)

    @property
    def quantity(self) -> Decimal | None:
        """Coins: granted (reserve), filled (confirm, fill) or closed (release). None without legs."""
        return _decimal(self.record.quantity)

    @property
    def fraction(self) -> Decimal | None:
        """The score's fraction of the per-position maximum, 0 to 1."""
        return _decimal(self.record.fraction)

    @property
    def raw_budget(self) -> Decimal | None:
        """Result of the sizing formula before any cap or balance, USD."""
        return _decimal(self.record.raw_budget)

    @property
    def headroom_before(self) -> Decimal | None:
        """Headroom of the portfolio before the decision, USD; below zero when facts exceeded the cap."""
        return _usd(self.record.headroom_e8)

    @property
    def exposure_before(self) -> Decimal:
        """held + open of the whole portfolio before the decision, USD."""
        return usd(self.record.exposure_e8)

    @property
    def exposure_after(self) -> Decimal:
        """held + open of the whole portfolio after the decision, USD."""
        return usd(self.record.exposure_e8 + self.record.held_delta_e8 + self.record.open_delta_e8)

    @property
    def binding(self) -> str | None:
        """The scope or constraint that decided the size or the denial; of `group_denied` the denied neighbour's key."""
        return self.record.binding

    @property
    def expires_at(self) -> datetime | None:
        """When the hold expires; None where it never ends by time (see `until_known`)."""
        expires_us = self.record.expires_us
        return None if expires_us is None or expires_us == UNTIL_KNOWN_US else from_us(expires_us)

    @property
    def frozen_note(self) -> str | None:
        """Why the scope is frozen that a denial as `unreconciled` is about; None where it is not, or nobody said."""
        if self.record.reason != "unreconciled" or "frozen_note" not in self.record.trace:
            return None
        try:
            trace = json.loads(self.record.trace)
            rows = [*trace.get("scopes", ()), *trace.get("others", ())]
            notes = [row[-1].get("frozen_note") for row in rows if row[0] == self.record.binding]
        except (ValueError, TypeError, AttributeError, LookupError):  # somebody edited the record
            return None
        return next(iter(notes), None)

    @property
    def until_known(self) -> bool:
        """Whether the hold never ends by time: an order is out and its fate not known."""
        return self.record.expires_us == UNTIL_KNOWN_US

    @property
    def legs(self) -> tuple[OrderLeg, ...]:
        """What to order, a leg each: of a granted reservation with legs; empty otherwise."""
        found = self._orders
        if found is None:
            found = orders_in(self.record)
            object.__setattr__(self, "_orders", found)
        return found

    @property
    def decided_at(self) -> datetime:
        """Time of the decision."""
        return from_us(self.record.decided_us)

    @property
    def request(self) -> str:
        """The request, as canonical JSON."""
        return self.record.request

    @property
    def trace(self) -> str:
        """Input of the rules, as canonical JSON (see `rules.trace`)."""
        return self.record.trace

    @property
    def actor(self) -> str | None:
        """Who sent the command (see `caller.Caller`); None in decisions of versions that did not record it."""
        return self.record.actor

    @property
    def client(self) -> str | None:
        """The client that the key belongs to; None in decisions of versions that did not record it."""
        return self.record.client

    @property
    def reference(self) -> str | None:
        """The caller's own text for the trade or order, if one was given."""
        return self.record.reference

    @property
    def hash(self) -> str | None:
        """Its hash in the audit chain; None for a dry run."""
        return self.record.hash or None

    def raise_for_denial(self) -> "Decision":
        """Return the decision, or raise `Denied` carrying it."""
        if self.record.outcome == "denied":
            raise Denied(self)
        return self

    def as_dry_run(self) -> "Decision":
        """Return the same answer without seq, hash and position, which only a recorded decision has."""
        return Decision(self.record._replace(seq=0, hash="", position=None))


DECISION_FIELDS = (
    "portfolio", "seq", "command", "key", "outcome", "reason", "position_id", "budget", "quantity", "fraction",
    "raw_budget", "headroom_before", "exposure_before", "exposure_after", "binding", "expires_at", "until_known",
    "decided_at",
    "actor", "client", "reference", "replayed", "hash",
)  # fmt: skip
"""Fields that a listing shows of a decision, in order."""


Result = Decision | LedgerError
"""Answer to one command of a batch."""


def orders_in(record: DecisionRecord) -> tuple[OrderLeg, ...]:
    """Return the orders of a granted reservation; none of any other decision, nor of a trace that is damaged."""
    if record.command != "reserve" or record.outcome != "granted" or '"legs":' not in record.trace:
        return ()
    try:
        form = json.loads(record.trace)
        return tuple([order_of(leg) for leg in legs_of_json(form.get("orders") or form["legs"]) if leg.unfilled])
    except (LedgerError, ValueError, TypeError, KeyError, AttributeError, ArithmeticError, RecursionError):
        return ()  # which `verify` reports, and listings can be read


def _usd(e8: int | None) -> Decimal | None:
    return None if e8 is None else usd(e8)


def _decimal(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def fields_text(fields: tuple[object, ...]) -> str:
    """Return the canonical text of a record's fields (all but the hash): without those at the end that are None."""
    end = len(fields)
    while fields[end - 1] is None:
        end -= 1
    return FIELD_SEPARATOR.join(
        [part if type(part) is str else NONE_MARK if part is None else str(part) for part in fields[:end]]
    )


def canonical_text(record: Fields) -> str:
    """Return the text that the chain hashes: every field but the hash itself."""
    return fields_text(record[:-1])


def is_head(seq: object, head: object) -> bool:
    """Return True for a possible chain head: a seq from 0 that fits 64 bits, and a hash of 64 hexadecimal digits."""
    return type(seq) is int and 0 <= seq <= E8_MAX and isinstance(head, str) and _HASH.fullmatch(head) is not None


def chain_hash(previous: str, text: str) -> str:
    """Return the hash of a record, given its canonical text and its predecessor's hash."""
    return sha256(f"{previous}{FIELD_SEPARATOR}{text}".encode()).hexdigest()
