"""A coin that an exchange gives another name: one decision renames the ledger's positions, and nothing counts twice."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import InvalidRequest, Leg, WrongState
from ledger_sizer.model.reconciliation import Drift
from ledger_sizer.reconcile.rename_candidates import rename_candidates
from tests.support.accounts import Desk, NewDesk, WrittenAccount, short
from tests.support.ledgers import position_of

D = Decimal
TAGS = {"strategy": "funding", "symbol": "FTM"}


def hedge(desk: Desk, key: str, coin: str, quantity: str, price: str, venue: str = "bybit", **tags: Any) -> str:
    """Adopt a spot coin with its perpetual sold."""
    legs = [
        Leg(venue, f"{coin}/USDT", "spot", "buy", D(quantity), D(price)),
        Leg(venue, f"{coin}/USDT:USDT", "swap", "sell", D(quantity), D(price)),
    ]
    tags = {"strategy": "funding", "symbol": coin, **tags}
    return position_of(desk.ledger.adopt(key=key, quantity=D(quantity), price=D(price), tags=tags, legs=legs))


def renamed_desk(new_desk: NewDesk, shown: str) -> tuple[Desk, str]:
    """A desk with 980 USD of FTM, hedged, which the exchange shows as `shown` S after two runs."""
    desk = new_desk(confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(10_000))
    name = hedge(desk, "ftm", "FTM", "2000", "0.49")
    desk.account.shows(short("2000", "FTM/USDT:USDT", "0.49"), FTM="2000")
    desk.run()
    price = str(D(980) / D(shown))
    desk.account.shows(short(shown, "S/USDT:USDT", price), S=shown)
    desk.run(2)
    return desk, name


@pytest.mark.parametrize(("ratio", "shown"), [("1", "2000"), ("24000", "48000000"), ("0.01", "20")])
def test_rename_when_the_exchange_shows_the_new_name_then_exposure_tags_and_age_stay_and_the_drifts_end(
    new_desk: NewDesk, ratio: str, shown: str
) -> None:
    desk, name = renamed_desk(new_desk, shown)
    before = desk.ledger.position(name)
    assert desk.ledger.exposure().open == 2940, "the old and both sides of the new count until it is decided"
    done = desk.reconciler.operator.rename("FTM", "S", ratio=D(ratio), reason="FTM is S")
    assert (done.positions, len(done.released), done.differences) == ((name,), 2, ())
    after = desk.ledger.position(name)
    assert (after.open, after.cost, after.quantity, after.opened_at) == (980, 980, D(shown), before.opened_at)
    assert after.tags == {**before.tags, "symbol": "S"}
    assert [(leg.symbol, leg.side, leg.filled, leg.cost) for leg in after.legs] == [
        ("S/USDT", "buy", D(shown), 980), ("S/USDT:USDT", "sell", D(shown), 980)
    ]  # fmt: skip
    exposure = desk.ledger.exposure()
    assert (exposure.open, exposure.scope("symbol=S").open, exposure.scope("symbol=FTM").open) == (980, 980, 0)
    again = desk.reconciler.operator.rename("FTM", "S", ratio=D(ratio), reason="FTM is S")
    assert again.positions == done.positions, "asked again, it is the same decision"
    report = desk.run()
    assert (report.findings, report.live, desk.ledger.exposure().open) == ((), (), 980)
    assert not desk.ledger.exposure().frozen
    desk.ledger.release(key="close", position_id=name, quantity=after.quantity)
    desk.account.shows()
    assert (desk.run().live, desk.ledger.exposure().open) == ((), 0)


@pytest.mark.one_engine
def test_rename_when_the_last_run_does_not_fit_then_it_says_how_and_needs_force(new_desk: NewDesk) -> None:
    desk, name = renamed_desk(new_desk, "1900")
    rename = desk.reconciler.operator.rename
    with pytest.raises(WrongState, match=r"S/USDT:USDT showed -1900 more .* where -2000 are to be expected"):
        rename("FTM", "S", reason="r")
    with pytest.raises(WrongState, match="no open position of LUNA"):
        rename("LUNA", "LUNC", reason="r")
    with pytest.raises(WrongState, match="no open position of FTM at okx"):
        rename("FTM", "S", venue="okx", reason="r")
    for wrong, field in (({"ratio": D(0)}, "ratio"), ({"reason": ""}, "reason"), ({"portfolio": "*"}, "portfolio")):
        with pytest.raises(InvalidRequest) as refused:
            rename("FTM", "S", **{"reason": "r", **wrong})  # type: ignore[arg-type]
        assert refused.value.field == field
    for asset in ("S/USDT", "1000S"):
        with pytest.raises(InvalidRequest, match="asset"):
            rename("FTM", asset, reason="r", force=True)
    assert desk.ledger.position(name).tags["symbol"] == "FTM", "nothing was recorded"
    done = rename("FTM", "S", reason="r", force=True)
    assert (len(done.differences), done.released) == (2, ())
    report = desk.run()
    assert {(one.kind, one.subject) for one in report.live} == {
        ("quantity_differs", "S"), ("quantity_differs", "S/USDT:USDT")
    }, "what is left is what really differs"  # fmt: skip
    assert desk.ledger.exposure().open == 980


@pytest.mark.one_engine
def test_rename_when_a_new_coin_takes_the_old_name_then_only_what_was_of_the_old_coin_gets_the_other_name(
    new_desk: NewDesk,
) -> None:
    desk = new_desk(confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(10_000))
    old = hedge(desk, "old", "LUNA", "100", "5")
    desk.account.shows(short("100", "LUNA/USDT:USDT", "5"), LUNA="100")
    desk.run()
    desk.account.shows(short("100", "LUNC/USDT:USDT", "5"), LUNC="100")
    desk.run()
    desk.reconciler.operator.rename("LUNA", "LUNC", reason="the old chain")
    new = hedge(desk, "new", "LUNA", "30", "9")
    desk.account.shows(
        short("100", "LUNC/USDT:USDT", "5"), short("30", "LUNA/USDT:USDT", "9"), LUNC="100", LUNA="30"
    )  # fmt: skip
    assert desk.run(2).live == ()
    assert [desk.ledger.position(one).tags["symbol"] for one in (old, new)] == ["LUNC", "LUNA"]
    with pytest.raises(WrongState, match=r"the ledger has -30, 0 of it were missing"):
        desk.reconciler.operator.rename("LUNA", "LUNC", reason="again, by mistake")


@pytest.mark.one_engine
def test_rename_when_one_venue_has_renamed_it_and_another_has_not_then_it_is_decided_venue_by_venue(
    new_desk: NewDesk,
) -> None:
    desk = new_desk([WrittenAccount("bybit"), WrittenAccount("okx")], confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(10_000))
    names = [hedge(desk, venue, "FTM", "2000", "0.49", venue) for venue in ("bybit", "okx")]
    desk.accounts[0].shows(short("2000", "S/USDT:USDT", "0.49"), S="2000")
    desk.accounts[1].shows(short("2000", "FTM/USDT:USDT", "0.49"), FTM="2000")
    desk.run()
    with pytest.raises(WrongState, match="okx/main FTM/USDT:USDT: the ledger has -2000, 0 of it were missing"):
        desk.reconciler.operator.rename("FTM", "S", reason="r")
    assert desk.reconciler.operator.rename("FTM", "S", venue="bybit", reason="r").positions == (names[0],)
    assert (desk.run().live, desk.ledger.exposure().open) == ((), 1960)


@pytest.mark.one_engine
def test_rename_when_only_the_number_of_coins_changed_then_the_name_stays(new_desk: NewDesk) -> None:
    desk = new_desk(confirmations=1)
    desk.ledger.set_cap(key="cap", cap=D(10_000))
    hedge(desk, "ftm", "FTM", "2000", "0.49")
    desk.account.shows(short("20", "FTM/USDT:USDT", "49"), FTM="20")
    desk.run()
    desk.reconciler.operator.rename("FTM", "FTM", ratio=D("0.01"), reason="redenominated")
    assert (desk.run().live, desk.ledger.exposure().open) == ((), 980)


def _drift(number: int, kind: str, subject: str, side: str, ledger: str, venue: str) -> Drift:
    return Drift(
        number, "main", "bybit", "main", subject, side, kind, "open", "freeze", 1, D(ledger), D(venue), D(0), None,  # type: ignore[arg-type]
        "", None, 0, None, None, 1, 1, 0, 0, None, None, None,
    )  # fmt: skip


def test_candidates_when_one_coin_is_gone_and_another_there_in_one_ratio_then_it_may_be_a_rename() -> None:
    live = [
        _drift(1, "missing_position", "FTM", "long", "2000", "0"),
        _drift(2, "missing_position", "FTM/USDT:USDT", "short", "2000", "0"),
        _drift(3, "unknown_position", "S", "long", "0", "48000000"),
        _drift(4, "unknown_position", "S/USDT:USDT", "short", "0", "48000000"),
        _drift(5, "unknown_position", "ETH/USDT:USDT", "short", "0", "1"),
    ]
    (found,) = rename_candidates(live)
    assert (found.coin, found.asset, found.ratio, found.drifts) == ("FTM", "S", 24000, (1, 2, 3, 4))
    assert rename_candidates([*live[:3], replace(live[3], venue_quantity=D(2000))]) == []
    assert rename_candidates([replace(live[0], state="resolved"), *live[1:4]]) == [], "the coin is still there"
