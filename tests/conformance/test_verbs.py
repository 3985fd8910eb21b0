"""Every verb with every argument, through every face: the same acceptance, code, field and effect.

The calls are derived from the declared arguments, so a new verb and a new argument join by themselves. Each call is
compared with what the embedded ledger answers. What a face cannot express is told in `forms`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from typing import Any

import pytest

from ledger_sizer import Confirm, Decision, InstrumentInfo, Ledger, Leg, LegPlan, Release, Reserve, SetCap
from ledger_sizer.model.arguments import NOT_GIVEN, DeclaredArgument, to_json
from ledger_sizer.model.command_base import PORTFOLIO_OR_DESK, PositionCommand
from ledger_sizer.model.commands import COMMANDS, AnyCommand
from ledger_sizer.model.legs import INSTRUMENT
from ledger_sizer.model.names import DESK
from ledger_sizer.wire.responses import decision_to_json, position_to_json
from tests.conformance.faces import (
    Answer,
    AtomicFace,
    ClientFace,
    CommandLineFace,
    Face,
    GroupFace,
    HttpFace,
    opened_faces,
)
from tests.conformance.forms import LISTS, Inexpressible, JsonForm
from tests.conformance.setting_cases import setting_cases
from tests.conftest import NewDatabase
from tests.support.argument_values import (
    BAD_OF_KIND,
    CONTRACT,
    GOOD_OF_KIND,
    LEG,
    LEG_PLAN,
    MORE_BAD_OF_KIND,
    SPOT,
)
from tests.support.decimal_contexts import HOSTILE, hostile
from tests.support.ledgers import BTC_PERP, BTC_SPOT

D = Decimal
START = datetime(2030, 1, 31, 12, tzinfo=UTC)
ONE_OF_KIND: dict[str, Any] = {
    "positive": D("1.5"), "not_negative": D(7), "moment": START, "label": "drift-17",
    "tags": {"venue": ["okx", "bybit"]}, "account_scope": "account=okx/main",
}  # fmt: skip
"""A value for each kind of argument that must be given."""
_MORE_OF_VERB: dict[str, dict[str, Any]] = {"set_cap": {"cap": D(7)}}
"""What a plain call needs beside the arguments that must be given."""
WHOLE_FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "legs": (Leg, to_json(LEG)),
    "leg_plans": (LegPlan, to_json(LEG_PLAN)),
    "instrument": (InstrumentInfo, to_json(BTC_SPOT)),
}
Steps = tuple[tuple[str, Mapping[str, Any]], ...]
STATES = ("held", "open", "released", "closed", "part", "expired")  # the last: its expiry takes a seq, at any time


@dataclass(frozen=True)
class Case:
    """A call. portfolio: its own, set up before. before, after: calls of the same face that come first and last."""

    name: str
    verb: str
    arguments: Mapping[str, Any]
    portfolio: str
    before: Steps = ()
    after: Steps = ()

    @property
    def id(self) -> str:
        """Name in a report."""
        return f"{self.verb} {self.name}"


class Cases:
    """Collects the calls of one verb."""

    def __init__(self, verb: str) -> None:
        self.verb = verb
        self.command = COMMANDS[verb]
        self.found: list[Case] = []

    def add(self, name: str, *, before: Steps = (), after: Steps = (), **changed: Any) -> None:
        """Add the verb's plain call with some arguments changed. In a text `{p}` stands for the case's portfolio."""
        portfolio = f"{self.verb.replace('_', '')}{len(self.found)}"
        base = {one.name: ONE_OF_KIND[one.kind.name] for one in self.command.arguments
                if one.required and one.name not in ("key", "position_id")}  # fmt: skip
        base |= _MORE_OF_VERB.get(self.verb, {})
        base["key"] = f"k{len(self.found)}"
        if issubclass(self.command, PositionCommand):
            base["position_id"] = f"{portfolio}-{STATES.index('held') + 2}"
        else:
            base["portfolio"] = portfolio
        arguments = _all_placed({**base, **changed}, portfolio)
        arguments = {name: value for name, value in arguments.items() if value is not NOT_GIVEN}
        first = tuple((verb, _all_placed({**base, **given}, portfolio)) for verb, given in before)
        last = tuple((verb, _all_placed(given, portfolio)) for verb, given in after)
        self.found.append(Case(name, self.verb, arguments, portfolio, first, last))


def _all_placed(arguments: Mapping[str, Any], portfolio: str) -> dict[str, Any]:
    return {name: value.replace("{p}", portfolio) if type(value) is str else value for name, value in arguments.items()}


def cases_of(verb: str) -> list[Case]:
    """Return the calls of a verb: plain, every value of every argument, every state, keys sent twice."""
    cases = Cases(verb)
    cases.add("plain")
    for one in cases.command.arguments:
        values = [*GOOD_OF_KIND.get(one.kind.name, ()), *one.kind.choices, None]
        bad = [*BAD_OF_KIND.get(one.kind.name, ()), *MORE_BAD_OF_KIND.get(one.kind.name, ())]
        assert one.kind.choices or bad, f"no hostile values for the kind {one.kind.name!r}"
        for number, value in enumerate([*values, *bad]):
            cases.add(f"{one.name}[{number}]={value!r:.60}", **{one.name: value})
        if one.kind is PORTFOLIO_OR_DESK:
            resume = {"key": "resume {p}", "portfolio": DESK}
            cases.add("the desk", portfolio=DESK, after=(("resume", resume),))
        if one.kind in (INSTRUMENT, *LISTS):
            _add_json_forms(cases, one)
    if issubclass(cases.command, PositionCommand):
        _add_states(cases)
    else:
        cases.add("portfolio that is not there", portfolio="nobody-{p}")
    cases.add("the same again", before=((verb, {}),))
    other = next((one for one in cases.command.arguments if one.name in ("note", "tags", "ttl_seconds", "price")), None)
    if other is not None:
        changed = {"note": "other", "tags": {"venue": "other"}, "ttl_seconds": 61, "price": D(77)}[other.name]
        cases.add("the key for another request", before=((verb, {}),), **{other.name: changed})
    if verb == "reserve":
        _add_reserves(cases)
    if verb == "set_cap":
        for name, before, changed in setting_cases():
            cases.add(name, before=before, **changed)
    return cases.found


def _add_json_forms(cases: Cases, argument: DeclaredArgument) -> None:
    """Add an instrument or a leg with every value of every field, as JSON has it."""
    of, whole = WHOLE_FORMS[argument.kind.name]
    forms: list[tuple[str, dict[str, Any]]] = [("a field too many", {**whole, "colour": "red"})]
    for one in of.arguments:
        if not one.declared.sent:
            continue
        forms.append((f"no {one.name}", {name: value for name, value in whole.items() if name != one.name}))
        kind = one.kind.name
        values = (None, *GOOD_OF_KIND.get(kind, ()), *BAD_OF_KIND.get(kind, ()), *MORE_BAD_OF_KIND.get(kind, ()))
        forms += [
            (f"{one.name}={value!r:.60}", {**whole, one.name: value})
            for value in values
            if not isinstance(value, int | float | bytes | InstrumentInfo) and value != "1"  # text is a number here
        ]
    for name, form in forms:
        given: Any = JsonForm(form)
        more: dict[str, Any] = {"price": D(50_000), "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}
        if argument.kind in LISTS:
            more, given = {}, [JsonForm(whole), JsonForm(form)]
        cases.add(f"{argument.name} with {name}", **{**more, argument.name: given})


def _add_states(cases: Cases) -> None:
    for number, state in enumerate(STATES):
        cases.add(f"position {state}", position_id=f"{{p}}-{number + 2}")
        if cases.verb == "release":
            cases.add(f"position {state}, too much", position_id=f"{{p}}-{number + 2}", quantity=D(99))
            cases.add(f"position {state}, a part", position_id=f"{{p}}-{number + 2}", quantity=D("0.25"))
            cases.add(f"position {state}, held only", position_id=f"{{p}}-{number + 2}", held_only=True)
        if cases.verb == "confirm":
            cases.add(f"position {state}, a part", position_id=f"{{p}}-{number + 2}", rest="hold")
            cases.add(f"position {state}, legs", position_id=f"{{p}}-{number + 2}", legs=[LEG])
        if cases.verb == "fill":
            cases.add(f"position {state}, all", position_id=f"{{p}}-{number + 2}", rest="free")
            cases.add(f"position {state}, known", position_id=f"{{p}}-{number + 2}", filled_quantity=D(1))
        if cases.verb == "extend":
            cases.add(f"position {state}, for ever", position_id=f"{{p}}-{number + 2}", until_known=True)
    cases.add("position that is not there", position_id="{p}-99")
    cases.add("position of no portfolio", position_id="nobody-1")


def _add_reserves(cases: Cases) -> None:
    legs: dict[str, Any] = {"price": D(50_000), "spot_instrument": BTC_SPOT, "perp_instrument": BTC_PERP}
    for name, more in {
        "sized": {}, "sized with a fee": {"spot_fee_rate": D("0.001")}, "too small": {"available_balance": D("9.99")},
        "no spot": {"spot_instrument": None}, "no perpetual": {"perp_instrument": None}, "no price": {"price": None},
        "unknown names": {"spot_instrument": "bybit:NO/SUCH", "perp_instrument": "bybit:NO/SUCH:SUCH"},
        "dry": {"dry_run": True}, "dry and denied": {"dry_run": True, "min_notional_usd": D(4000)},
    }.items():  # fmt: skip
        cases.add(name, **{**legs, **more})
    hedge = [LegPlan(SPOT, "buy", fee_rate=D("0.001")), LegPlan(CONTRACT, "sell", D(50_100))]
    granted: Steps = (("reserve", {"key": "first", "portfolio": "{p}", "amount_usd": D(100)}),)
    for name, more in {
        "legs": {}, "legs and an amount": {"amount_usd": D(700)}, "legs, dry": {"dry_run": True},
        "legs and a maximum": {"signal_score": D("0.5"), "max_position_usd": D(300)},
        "legs at a venue of the tags": {"tags": {"venue": ["okx", "bybit", "gate"]}},
        "legs elsewhere": {"tags": {"venue": "gate"}}, "legs of another asset": {"tags": {"symbol": "ETH"}},
        "legs too small": {"amount_usd": D(5)}, "legs until known": {"until_known": True},
        "an amount and a score": {"amount_usd": D(5), "signal_score": D(1)},
        "until known and seconds": {"until_known": True, "ttl_seconds": 5},
    }.items():  # fmt: skip
        cases.add(name, **{"price": D(50_000), "legs": hedge, **more})
    for name, more in {
        "more": {}, "more, dry": {"dry_run": True}, "more of other legs": {"legs": hedge, "price": D(50_000)},
        "more than the maximum": {"amount_usd": D(4000), "max_position_usd": D(90)},
        "more for ever": {"until_known": True},
        "more of none": {"position_id": "{p}-99"}, "more elsewhere": {"tags": {"venue": "gate"}},
    }.items():  # fmt: skip
        cases.add(name, before=granted, **{"position_id": "{p}-2", "amount_usd": D(50), **more})
    cases.add("denied", min_notional_usd=D(4000))
    cases.add("full", before=(("set_cap", {"key": "full", "cap": D(0), "portfolio": "{p}"}),))
    cases.add("halted", before=(("halt", {"key": "halt", "portfolio": "{p}"}),))


def _set_up(ledger: Ledger, cases: list[Case]) -> None:
    """Give every case a portfolio with a cap; the verbs about positions find one in every state."""
    commands: list[AnyCommand] = []
    later: list[AnyCommand] = []
    for case in cases:
        name = case.portfolio
        commands.append(SetCap(key="cap", portfolio=name, cap=D(100_000)))
        if not issubclass(COMMANDS[case.verb], PositionCommand):
            continue
        for number, state in enumerate(STATES):
            ttl = D("0.000001") if state == "expired" else 3600
            commands.append(Reserve(key=state, portfolio=name, ttl_seconds=ttl))
            position = f"{name}-{number + 2}"
            if state in ("open", "closed", "part"):
                rest: Any = "hold" if state == "part" else None
                later.append(Confirm(key=f"{state}/fill", position_id=position, quantity=D(1), price=D(500), rest=rest))
            if state in ("released", "closed"):
                later.append(Release(key=f"{state}/end", position_id=position))
    for group in (commands, later):
        for start in range(0, len(group), 2000):
            results = ledger.submit(group[start : start + 2000])
            assert [one for one in results if not isinstance(one, Decision) or one.outcome == "denied"] == []


def _left_out(form: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs from face to face by design: times, and what is derived from them; who asked."""
    for name in ("decided_at", "expires_at", "opened_at", "updated_at", "hash", "actor", "client"):
        form.pop(name, None)
    form.get("trace", {}).get("entry", {}).pop("expires_us", None)
    return form


def effect_on(ledger: Ledger, portfolio: str) -> Any:
    """Return everything that a portfolio holds, without times."""
    exposure = ledger.exposure(portfolio)
    return (
        [_left_out(decision_to_json(one, full=True)) for one in ledger.history(portfolio, limit=1000)],
        [_left_out(position_to_json(one)) for one in ledger.positions(portfolio, limit=1000)],
        [(row.scope, row.cap, row.held, row.open, row.status, row.frozen, row.fresh_until) for row in exposure.scopes],
    )


class Played:
    """A face after all calls. answers: None where it cannot express the call. seqs: of the heads, by portfolio."""

    def __init__(self, face: Face, cases: list[Case]) -> None:
        self.face = face
        _set_up(face.behind, cases)
        self._seqs_before = _seqs(face.behind)
        self.answers = [_answer_to(face, case) for case in cases]
        self.unsaid = {case.id for case, answer in zip(cases, self.answers, strict=True) if answer is None}
        self.seqs = _seqs(face.behind)
        self._effects: dict[str, Any] = {}

    def can_say(self, case: Case) -> bool:
        """Return whether the face could send this call itself."""
        return case.id not in self.unsaid

    def effect(self, case: Case) -> Any:
        """Return what the call left in its portfolio; None where nothing was recorded, or there is none."""
        seq = self.seqs.get(case.portfolio)
        if seq is None or seq == self._seqs_before.get(case.portfolio):
            return None
        if case.portfolio not in self._effects:
            self._effects[case.portfolio] = effect_on(self.face.behind, case.portfolio)
        return self._effects[case.portfolio]


def _answer_to(face: Face, case: Case) -> Answer | None:
    try:
        for verb, arguments in case.before:
            face.send(verb, **arguments)
        answer = face.send(case.verb, **case.arguments)
        for verb, arguments in case.after:
            face.send(verb, **arguments)
        return answer
    except Inexpressible:
        return None


def _seqs(ledger: Ledger) -> dict[str, int]:
    return {name: seq for name, (seq, _) in ledger.heads().items()}


@pytest.fixture(scope="module")
def faces(module_database: NewDatabase) -> Iterator[list[Face]]:
    """All faces, each on a SQLite database of its own."""
    with opened_faces(lambda: module_database("sqlite")) as found:
        yield found


@pytest.fixture(scope="module")
def postgresql_faces(module_database: NewDatabase) -> Iterator[list[Face]]:
    """A face of each medium, each on a PostgreSQL database of its own."""
    wanted = (Face, GroupFace, ClientFace, HttpFace, AtomicFace, CommandLineFace)
    with opened_faces(lambda: module_database("postgresql"), wanted) as found:
        yield found


def differences(faces: list[Face], cases: list[Case]) -> list[str]:
    """Return every call that a face answered otherwise than the first one, or with another effect."""
    played = {face.name: Played(face, cases) for face in faces}
    first, *others = played.values()
    found = []
    for number in range(len(cases)):  # what Python cannot say is compared with the first face that can
        if first.answers[number] is None:
            first.answers[number] = next((one.answers[number] for one in others if one.answers[number]), None)
    for other in others:
        name, like = other.face.name, played.get(other.face.effect_like, first)
        for case, wanted, got in zip(cases, first.answers, other.answers, strict=True):
            if got is None:
                continue
            if got != wanted:
                found.append(f"{case.id}: {first.face.name} {wanted}, {name} {got}")
            elif other is not like and like.can_say(case) and other.effect(case) != like.effect(case):
                found.append(f"{case.id}: {name} has another effect than {like.face.name}")
        unknown = other.seqs.keys() ^ first.seqs.keys()
        found += [f"only one of {first.face.name} and {name} has the portfolio {one}" for one in sorted(unknown)]
    return found


@pytest.mark.parametrize("verb", COMMANDS)
def test_send_when_only_the_face_differs_then_acceptance_code_field_and_effect_are_equal(
    faces: list[Face], verb: str
) -> None:
    found = differences(faces, cases_of(verb))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("verb", COMMANDS)
def test_send_when_only_the_face_differs_then_the_plain_calls_are_equal_on_postgresql_too(
    postgresql_faces: list[Face], verb: str
) -> None:
    few = [case for case in cases_of(verb) if "=" not in case.name and " with " not in case.name]
    found = differences(postgresql_faces, few)
    assert not found, "\n".join(found)


def _played(url: str) -> list[tuple[str, Answer | None, Any]]:
    """Return what the embedded ledger answers to every call of every verb, and what each call leaves."""
    cases = [case for verb in COMMANDS for case in cases_of(verb) if " with " not in case.name]
    with opened_faces(lambda: url, (Face,)) as (face,):
        played = Played(face, cases)
        return [(case.id, answer, played.effect(case)) for case, answer in zip(cases, played.answers, strict=True)]


@pytest.fixture(scope="module")
def usually_played(module_database: NewDatabase) -> list[tuple[str, Answer | None, Any]]:
    """What is answered in the decimal context that Python begins with."""
    with localcontext(Context()):
        return _played(module_database("sqlite"))


@pytest.mark.parametrize("context", HOSTILE)
def test_send_when_the_decimal_context_is_hostile_then_every_answer_and_effect_is_the_same(
    context: str, module_database: NewDatabase, usually_played: list[Any]
) -> None:
    """What a new verb or argument computes in the caller's context is found here, without a test of its own."""
    with hostile(context):
        played = _played(module_database("sqlite"))
    assert [one for one, usual in zip(played, usually_played, strict=True) if one[1:] != usual[1:]] == []
