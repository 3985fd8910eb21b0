"""Notes of every verb that takes one, and releasing only what is held: the same in every face of the ledger."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Ledger, WrongState
from ledger_sizer.model.commands import COMMANDS
from tests.support.command_line import CommandLine
from tests.support.interfaces import FILL, INTERFACES, opened

pytestmark = pytest.mark.one_engine

D = Decimal
WHY = "why: the desk's decision ☃"
GIVEN: dict[str, dict[str, Any]] = {
    "set_cap": {"cap": D(4000)},
    "halt": {},
    "resume": {},
    "adopt": {"quantity": D(1), "price": D(10), "tags": {"symbol": "BTC"}},
    "freeze": {},
    "thaw": {},
    "reconciled": {"fresh_until": datetime(2030, 1, 1, tzinfo=UTC)},
    "account_seen": {"scope": "account=okx/main", "free": D(9)},
    "equity_seen": {"scope": "bot=e", "equity": D(5)},
    "remark": {"about": "drift-1", "event": "seen"},
    "retag": {"position_id": "main-2", "tags": {"desk": "x"}},
    "reprice": {"position_id": "main-2", "price": D(11)},
    "rename": {"position_id": "main-2", "asset": "S", "coin": "BTC"},
}
ON_THE_COMMAND_LINE = {
    "set_cap": ("caps", "set", "main", "4000"),
    "adopt": ("adopt", "--quantity", "1", "--price", "10", "--tag", "symbol=BTC"),
    "reconciled": ("reconciled", "--fresh-until", "2030-01-01T00:00:00Z"),
    "account_seen": ("account-seen", "--scope", "account=okx/main", "--free", "9"),
    "equity_seen": ("equity-seen", "--scope", "bot=e", "--equity", "5"),
    "remark": ("remark", "--about", "drift-1", "--event", "seen"),
    "retag": ("retag", "main-2", "--tag", "desk=x"),
    "reprice": ("reprice", "main-2", "--price", "11"),
    "rename": ("rename", "main-2", "--asset", "S", "--coin", "BTC"),
}


def newest(ledger: Ledger) -> tuple[str, Any]:
    decision = ledger.history(limit=1).items[0]
    return decision.command, json.loads(decision.request).get("note")


def test_list_verbs_when_one_takes_a_note_then_it_is_tested() -> None:
    assert set(GIVEN) == {name for name, of in COMMANDS.items() if any(one.name == "note" for one in of.arguments)}


@pytest.mark.parametrize("interface", INTERFACES)
async def test_administer_when_a_note_is_given_then_it_is_kept_with_the_decision(
    interface: str, database_url: str
) -> None:
    async with opened(interface, database_url, None) as ledger:
        await ledger.set_cap(key="first", cap=D(5000))
        await ledger.adopt(key="second", **GIVEN["adopt"])
        await ledger.set_cap(key="third", scope="bot=e", share_of_equity=D(1))
        for verb, given in GIVEN.items():
            await getattr(ledger, verb)(key=verb, note=WHY, **given)
            assert newest(ledger.behind) == (verb, WHY)
            with pytest.raises(InvalidRequest) as refused:
                await getattr(ledger, verb)(key=f"{verb}/bad", note="x" * 501, **given)
            assert refused.value.field == "note"
            assert newest(ledger.behind) == (verb, WHY), "nothing was recorded"


def test_administer_when_a_note_is_given_on_the_command_line_then_it_is_kept_with_the_decision(
    cli: CommandLine,
) -> None:
    with Ledger.open(cli.url) as ledger:
        ledger.set_cap(key="first", cap=D(5000))
        ledger.adopt(key="second", **GIVEN["adopt"])
        ledger.set_cap(key="third", scope="bot=e", share_of_equity=D(1))
        for verb in GIVEN:
            decision = cli.json(*ON_THE_COMMAND_LINE.get(verb, (verb,)), "--note", WHY)
            assert (decision["command"], newest(ledger)) == (verb, (verb, WHY))


@pytest.mark.parametrize("interface", INTERFACES)
async def test_release_when_held_only_then_a_hold_ends_and_a_fill_stays(interface: str, database_url: str) -> None:
    async with opened(interface, database_url, None) as ledger:
        held = await ledger.reserve(key="a", ttl_seconds=600)
        filled = await ledger.reserve(key="b", ttl_seconds=600)
        await ledger.confirm(key="b/fill", position_id=filled.position_id, **FILL)
        done = await ledger.release(key="a/end", position_id=held.position_id, held_only=True)
        assert done.outcome == "applied"
        with pytest.raises(WrongState):
            await ledger.release(key="b/end", position_id=filled.position_id, held_only=True)
        states = [position.state for position in ledger.behind.positions()]
        assert (states, ledger.behind.exposure().seq) == (["released", "open"], 4)


def test_release_when_held_only_on_the_command_line_then_a_hold_ends_and_a_fill_stays(cli: CommandLine) -> None:
    with Ledger.open(cli.url) as ledger:
        for key in ("a", "b"):
            ledger.reserve(key=key, ttl_seconds=600)
        ledger.confirm(key="b/fill", position_id="main-2", **FILL)
        released = cli.json("release", "main-1", "--held-only")
        assert (released["outcome"], released["request"]["held_only"]) == ("applied", "True")
        refused = cli("release", "main-2", "--held-only")
        assert refused.code == 1
        assert "main-2" in refused.err
        assert [position.state for position in ledger.positions()] == ["released", "open"]
