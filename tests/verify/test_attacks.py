"""Attacks by somebody who may write to the database, and which of the two verifications finds them (docs/audit.md)."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

import pytest

from ledger_sizer import Reserve
from ledger_sizer.verify.chain import Heads
from tests.support.edited_ledgers import Scene, decision_rows, last_seq, rewrite_chain

D = Decimal
HEAD = 14
"""Decisions up to this seq are trusted. Of the positions in `Scene`, four were made before it and others after."""


def _edit(scene: Scene, seq: int) -> None:
    scene.intruder.run("UPDATE decisions SET binding = 'forged' WHERE portfolio_id = 1 AND seq = :seq", seq=seq)


def _rewrite(scene: Scene, seq: int) -> None:
    """Edit one decision, and recompute its hash and all later hashes."""
    _edit(scene, seq)
    head = rewrite_chain(scene, seq)
    scene.intruder.run("UPDATE portfolios SET last_hash = :head WHERE id = 1", head=head)


def _cut(scene: Scene, last: int) -> None:
    """Remove all decisions and positions after a seq, and set the head back to it."""
    (row,) = [row for row in decision_rows(scene) if row[1] == last]
    run = scene.intruder.run
    run("DELETE FROM decisions WHERE portfolio_id = 1 AND seq > :last", last=last)
    run("DELETE FROM positions WHERE portfolio_id = 1 AND number > :last", last=last)
    run("UPDATE portfolios SET last_seq = :last, last_hash = :head WHERE id = 1", last=last, head=row[-1])


def _move_position(scene: Scene, *, before: bool) -> None:
    """Make a position smaller, and every counter that includes it."""
    found = [p for p in scene.ledger.positions("main", state="live") if (p.number <= HEAD) is before]
    assert found, "there is a live position on that side of the head"
    column = "held_e8" if found[0].state == "held" else "open_e8"
    run = scene.intruder.run
    run(f"UPDATE positions SET {column} = {column} - 5 WHERE portfolio_id = 1 AND number = :n", n=found[0].number)
    for scope in found[0].tags.scopes:
        run(f"UPDATE scopes SET {column} = {column} - 5 WHERE portfolio_id = 1 AND scope = :s", s=scope)


def _raise_cap(scene: Scene, scope: str) -> None:
    scene.intruder.run("UPDATE scopes SET cap_e8 = cap_e8 + 5 WHERE portfolio_id = 1 AND scope = :s", s=scope)


Attack = Callable[[Scene], object]
ATTACKS: dict[str, tuple[Attack, bool, bool]] = {
    # attack, found by verify, found by verify --since-head
    "edit before the head": (lambda scene: _edit(scene, 5), True, False),
    "edit after the head": (lambda scene: _edit(scene, HEAD + 3), True, True),
    "rewrite from before the head": (lambda scene: _rewrite(scene, 5), False, True),
    "rewrite from after the head": (lambda scene: _rewrite(scene, HEAD + 3), False, False),
    "cut off before the head": (lambda scene: _cut(scene, HEAD - 1), True, True),
    "cut off after the head": (lambda scene: _cut(scene, last_seq(scene) - 1), True, True),
    "position of before the head": (lambda scene: _move_position(scene, before=True), True, False),
    "position of after the head": (lambda scene: _move_position(scene, before=False), True, True),
    "cap last seen before the head": (lambda scene: _raise_cap(scene, "venue=idle"), True, False),
    "cap seen after the head": (lambda scene: _raise_cap(scene, "portfolio"), True, True),
}


def _recount(scene: Scene, last: int) -> None:
    (row,) = scene.intruder.rows("SELECT hash FROM decisions WHERE portfolio_id = 0 AND seq = :last", last=last)
    scene.intruder.run(
        "UPDATE portfolios SET last_seq = :last, last_hash = :head WHERE id = 0", last=last, head=row.hash
    )


DESK_ATTACKS: dict[str, Attack] = {
    "a decision edited": lambda scene: scene.intruder.run(
        "UPDATE decisions SET actor = 'api:0:somebody' WHERE portfolio_id = 0 AND seq = 2"
    ),
    "a decision deleted": lambda scene: scene.intruder.run("DELETE FROM decisions WHERE portfolio_id = 0 AND seq = 2"),
    "the resume deleted": lambda scene: (
        scene.intruder.run("DELETE FROM decisions WHERE portfolio_id = 0 AND seq = 3"), _recount(scene, 2)
    ),
    "the status edited": lambda scene: scene.intruder.run("UPDATE scopes SET status = 'halted' WHERE portfolio_id = 0"),
    "the status deleted": lambda scene: scene.intruder.run("DELETE FROM scopes WHERE portfolio_id = 0"),
    "all of the desk deleted": lambda scene: [
        scene.intruder.run(f"DELETE FROM {table} WHERE {column} = 0")
        for table, column in (("decisions", "portfolio_id"), ("scopes", "portfolio_id"), ("portfolios", "id"))
    ],
}  # fmt: skip


@pytest.mark.parametrize("what", DESK_ATTACKS)
def test_verify_when_somebody_changed_the_desk_behind_its_back_then_it_is_found(scene: Scene, what: str) -> None:
    scene.ledger.remark(key="made", portfolio="*", about="key-0", event="created")
    scene.ledger.halt(key="stop", portfolio="*")
    scene.ledger.resume(key="go", portfolio="*")
    assert scene.verify().ok
    DESK_ATTACKS[what](scene)
    for report in (scene.verify(), scene.ledger.verify("*")):
        assert report.findings[0].portfolio in ("*", "(id 0)"), report.findings


@pytest.mark.parametrize("what", ATTACKS)
def test_verify_when_somebody_with_the_databases_rights_did_it_then_it_is_found_by_whom_the_docs_say(
    scene: Scene, what: str
) -> None:
    attack, by_verify, by_head = ATTACKS[what]
    heads: Heads = {"main": (HEAD, scene.ledger.decision(HEAD).hash or "")}
    assert scene.verify(since=heads).ok
    attack(scene)
    assert (not scene.verify().ok, not scene.verify(since=heads).ok) == (by_verify, by_head)


def test_verify_when_heads_are_kept_at_every_step_then_no_rewrite_passes_both(scene: Scene) -> None:
    """Only a rewrite after the last kept head is never found. So heads kept more often leave less to rewrite."""
    kept = {n: {"main": (n, scene.ledger.decision(n).hash or "")} for n in range(1, last_seq(scene) + 1)}
    _rewrite(scene, HEAD)
    assert scene.verify().ok
    found = [n for n, heads in kept.items() if not scene.verify(since=heads).ok]
    assert found == [n for n in kept if n >= HEAD]


def test_verify_when_a_page_of_history_was_read_after_the_head_then_it_counts_what_it_read(scene: Scene) -> None:
    head = {name: head for name, head in scene.ledger.heads().items() if name == "main"}
    scene.ledger.submit([Reserve(key=f"n{n}", min_notional_usd=D(10**6)) for n in range(40)])
    report = scene.verify(portfolio="main", since=head)
    assert (report.ok, report.decisions) == (True, 40)
