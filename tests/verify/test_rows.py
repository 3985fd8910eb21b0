"""Edits of whole rows: decisions, positions, scopes, portfolios that are dropped, swapped, forged or rewritten."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from ledger_sizer import Ledger, Reserve
from ledger_sizer.model.decisions import canonical_text, chain_hash
from ledger_sizer.storage.write_store import DECISION_COLUMNS, record_from_row
from tests.support.edited_ledgers import Scene, decision_rows, last_seq, rewrite_chain
from tests.support.ledgers import Intruder

D = Decimal


def findings(scene: Scene) -> list[tuple[int | None, str]]:
    report = scene.verify()
    assert not report.ok
    assert report.first == report.findings[0]
    return [(finding.seq, finding.what) for finding in report.findings]


def insert_decision(scene: Scene, row: dict[str, Any]) -> None:
    names = ", ".join(DECISION_COLUMNS)
    marks = ", ".join(f":{name}" for name in DECISION_COLUMNS)
    scene.intruder.run(f"INSERT INTO decisions ({names}) VALUES ({marks})", **row)


# --- decisions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [1, 2, 8, -1])
def test_verify_when_a_decision_was_deleted_then_its_place_is_named(scene: Scene, seq: int) -> None:
    seq = seq if seq > 0 else last_seq(scene)
    scene.intruder.run("DELETE FROM decisions WHERE portfolio_id = 1 AND seq = :seq", seq=seq)
    found = findings(scene)
    assert any(at == seq for at, _ in found), found
    assert any("missing" in what or "head says" in what for at, what in found if at == seq), found


def test_verify_when_the_last_decisions_were_cut_off_then_the_head_tells(scene: Scene) -> None:
    last = last_seq(scene)
    scene.intruder.run("DELETE FROM decisions WHERE portfolio_id = 1 AND seq > :seq", seq=last - 3)
    assert any(at == last - 2 and f"head says {last} decisions" in what for at, what in findings(scene))


def test_verify_when_all_decisions_are_gone_then_it_is_found(scene: Scene) -> None:
    scene.intruder.run("DELETE FROM decisions WHERE portfolio_id = 1")
    assert any("head says" in what and "has 0" in what for _, what in findings(scene))


@pytest.mark.parametrize(("one", "two"), [(3, 4), (2, 9)])
def test_verify_when_two_decisions_were_swapped_then_the_first_of_them_is_named(
    scene: Scene, one: int, two: int
) -> None:
    for old, new in ((one, -1), (two, one), (-1, two)):
        scene.intruder.run("UPDATE decisions SET seq = :new WHERE portfolio_id = 1 AND seq = :old", new=new, old=old)
    assert one in [at for at, what in findings(scene) if "decision" in what]


def test_verify_when_a_decision_was_forged_at_the_end_then_the_head_tells(scene: Scene) -> None:
    last = last_seq(scene)
    row = dict(zip(DECISION_COLUMNS, decision_rows(scene, last)[0], strict=True))
    forged = row | {"seq": last + 1, "key": "forged", "outcome": "granted", "reason": None}
    text = canonical_text(record_from_row("main", list(forged.values())))
    insert_decision(scene, forged | {"hash": chain_hash(row["hash"], text)})
    found = [(at, what) for at, what in findings(scene) if "head says" in what]
    assert [at for at, _ in found] == [last + 1], "its own hash is right; the head does not know it"


def test_verify_when_a_decision_was_inserted_in_between_then_it_is_found(scene: Scene) -> None:
    row = dict(zip(DECISION_COLUMNS, decision_rows(scene, 5)[0], strict=True))
    for seq in range(last_seq(scene), 5, -1):
        scene.intruder.run("UPDATE decisions SET seq = seq + 1 WHERE portfolio_id = 1 AND seq = :seq", seq=seq)
    insert_decision(scene, row | {"seq": 6, "key": "forged"})
    assert 6 in [at for at, what in findings(scene) if "decision" in what]


@pytest.mark.parametrize("seq", [1, 6])
def test_verify_when_an_edit_was_covered_up_by_rewriting_the_chain_then_the_head_tells(scene: Scene, seq: int) -> None:
    scene.intruder.run("UPDATE decisions SET binding = 'forged' WHERE portfolio_id = 1 AND seq = :seq", seq=seq)
    rewrite_chain(scene, seq)
    found = findings(scene)
    assert all("is not the one that was made" not in what for _, what in found), "every link fits again"
    assert any("head says" in what for _, what in found)


def test_verify_when_chain_and_head_were_rewritten_then_a_head_noted_elsewhere_differs(scene: Scene) -> None:
    """An attacker who can rewrite everything fools any check inside the database. So heads must be kept outside it."""
    noted = scene.verify().heads["main"]
    scene.intruder.run("UPDATE decisions SET binding = 'forged' WHERE portfolio_id = 1 AND seq = 6")
    head = rewrite_chain(scene, 6)
    scene.intruder.run("UPDATE portfolios SET last_hash = :head WHERE id = 1", head=head)
    report = scene.verify()
    assert report.heads["main"] == (noted[0], head)
    assert report.heads["main"] != noted


def test_verify_when_a_fill_was_edited_and_the_chain_rewritten_then_its_position_tells(scene: Scene) -> None:
    """Even with chain and head rewritten, an edited amount of a decision contradicts its position's row."""
    seq = next(decision.seq for decision in scene.ledger.history("main", command="confirm", ascending=True))
    scene.intruder.run(
        "UPDATE decisions SET open_delta_e8 = open_delta_e8 - 5 WHERE portfolio_id = 1 AND seq = :seq", seq=seq
    )
    head = rewrite_chain(scene, seq or 0)
    scene.intruder.run("UPDATE portfolios SET last_hash = :head WHERE id = 1", head=head)
    assert any("position main-3 has open_e8" in what for _, what in findings(scene))


# --- positions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["held", "open", "closed", "released", "expired"])
def test_verify_when_a_position_was_deleted_then_it_is_missed(scene: Scene, state: str) -> None:
    number = scene.ledger.positions("main", state=state)[0].number
    scene.intruder.run("DELETE FROM positions WHERE portfolio_id = 1 AND number = :number", number=number)
    found = findings(scene)
    assert (number, f"position main-{number} is missing") in found
    counted = [what for at, what in found if at is None]
    assert bool(counted) is (state in ("held", "open")), "the counters tell too where it counted"


@pytest.mark.parametrize("state", ["open", "closed"])
def test_verify_when_a_position_was_forged_then_no_decision_knows_it(scene: Scene, state: str) -> None:
    source = scene.ledger.positions("main", state=state)[0].number
    columns = "state, tags, held_e8, open_e8, quantity, price, legs, expires_us, opened_us, updated_us, updated_seq"
    scene.intruder.run(
        f"INSERT INTO positions (portfolio_id, number, {columns}) "
        f"SELECT portfolio_id, 1000, {columns} FROM positions WHERE portfolio_id = 1 AND number = :number",
        number=source,
    )
    assert (1000, "position main-1000 stands in no decision") in findings(scene)


def test_verify_when_position_and_counters_were_edited_together_then_the_decisions_tell(scene: Scene) -> None:
    position = scene.ledger.positions("main", state="open")[0]
    scene.intruder.run(
        "UPDATE positions SET open_e8 = open_e8 - 100 WHERE portfolio_id = 1 AND number = :n", n=position.number
    )
    for scope in position.tags.scopes:
        scene.intruder.run("UPDATE scopes SET open_e8 = open_e8 - 100 WHERE portfolio_id = 1 AND scope = :s", s=scope)
    found = findings(scene)
    assert [at for at, _ in found] == [position.number], "the sums agree with the rows, the row not with its decisions"


# --- scopes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["portfolio", "venue=bybit", "venue=idle", "symbol=ETH"])
def test_verify_when_a_scope_was_deleted_then_it_is_missed(scene: Scene, scope: str) -> None:
    """`venue=idle` has no exposure, but it has a cap. Without its row the cap is lost."""
    scene.intruder.run("DELETE FROM scopes WHERE portfolio_id = 1 AND scope = :scope", scope=scope)
    assert any(scope in what for _, what in findings(scene))


@pytest.mark.parametrize("values", ["0, 0, 0, 0, 'active'", "NULL, 0, 0, 0, 'halted'"])
def test_verify_when_a_scope_was_forged_then_no_decision_knows_it(scene: Scene, values: str) -> None:
    """A forged cap or halt would deny what should be granted."""
    scene.intruder.run(
        "INSERT INTO scopes (portfolio_id, scope, cap_e8, held_e8, open_e8, overage_e8, status) "
        f"VALUES (1, 'venue=forged', {values})"
    )
    assert any("venue=forged" in what for _, what in findings(scene))


@pytest.mark.parametrize(
    ("edit", "put_right"),
    [
        ("cap_e8 = cap_e8 * 9", "cap_e8 = cap_e8"),
        ("cap_e8 = cap_e8 * 9", "cap_e8 = cap_e8 / 9, overage_e8 = held_e8 - cap_e8 / 9"),
        ("held_e8 = 0", "held_e8 = held_e8 * 2, overage_e8 = held_e8 * 2 - cap_e8"),
    ],
)
def test_verify_when_a_scope_was_edited_and_a_grant_followed_then_the_grant_is_named(
    database_url: str, edit: str, put_right: str
) -> None:
    """In the end the row agrees with the last decision and with its positions. Only what the grant saw differs."""
    intruder = Intruder(database_url)
    statement = "UPDATE scopes SET {} WHERE scope = 'venue=bybit'"
    with Ledger.open(database_url) as ledger:
        ledger.set_cap(key="cap", scope="venue=bybit", cap=D(1000))
        assert ledger.reserve(key="first", tags={"venue": "bybit"}, ttl_seconds=600).budget == D(1000)
        assert ledger.reserve(key="full", tags={"venue": "bybit"}).reason == "cap_exceeded"
    intruder.run(statement.format(edit))
    with Ledger.open(database_url) as ledger:
        granted = ledger.reserve(key="second", tags={"venue": "bybit"}, ttl_seconds=600)
        assert granted.granted
    intruder.run(statement.format(put_right))
    with Ledger.open(database_url) as ledger:
        found = ledger.verify().findings
    intruder.close()
    assert found
    assert (found[0].seq, "venue=bybit" in found[0].what) == (granted.seq, True)


# --- portfolios --------------------------------------------------------------------------------------------------

TABLES = ("decisions", "positions", "scopes", "portfolios")


@pytest.mark.parametrize("kept", [("decisions", "positions", "scopes"), ("decisions",), ("positions",), ("scopes",)])
def test_verify_when_a_portfolio_was_deleted_then_what_it_left_is_found(scene: Scene, kept: tuple[str, ...]) -> None:
    for table in TABLES:
        if table not in kept:
            column = "id" if table == "portfolios" else "portfolio_id"
            scene.intruder.run(f"DELETE FROM {table} WHERE {column} = 1")
    assert findings(scene)


def test_verify_when_the_head_was_set_back_and_the_rows_cut_off_then_the_positions_tell(scene: Scene) -> None:
    last = last_seq(scene)
    cut = last - 1
    head = decision_rows(scene, cut)[0][-1]
    scene.intruder.run("DELETE FROM decisions WHERE portfolio_id = 1 AND seq > :seq", seq=cut)
    scene.intruder.run("UPDATE portfolios SET last_seq = :seq, last_hash = :head WHERE id = 1", seq=cut, head=head)
    assert findings(scene) == [(last, f"position main-{last} stands in no decision")]


# --- at length ---------------------------------------------------------------------------------------------------


def _deleted(scene: Scene, seq: int) -> None:
    scene.intruder.run("DELETE FROM decisions WHERE portfolio_id = 1 AND seq = :seq", seq=seq)


def _edited(scene: Scene, seq: int) -> None:
    scene.intruder.run("UPDATE decisions SET binding = 'forged' WHERE portfolio_id = 1 AND seq = :seq", seq=seq)


@pytest.mark.parametrize("harm", [_deleted, _edited])
def test_verify_when_the_ledger_is_longer_than_one_chunk_then_it_is_read_to_the_end(
    scene: Scene, harm: Callable[[Scene, int], None]
) -> None:
    scene.ledger.submit([Reserve(key=f"n{n}", min_notional_usd=D(10**6)) for n in range(4100)])
    told: list[int] = []
    report = scene.verify(progress=lambda done, _total: told.append(done))
    assert report.ok
    assert report.decisions == last_seq(scene) + 2 > 4100
    assert len(told) > 2
    harm(scene, 4050)
    assert 4050 in [at for at, _ in findings(scene)]


def test_verify_when_very_much_is_wrong_then_the_first_of_it_is_still_first(scene: Scene) -> None:
    scene.intruder.run("UPDATE decisions SET decided_us = decided_us + 1 WHERE portfolio_id = 1")
    assert findings(scene)[0][0] == 1
