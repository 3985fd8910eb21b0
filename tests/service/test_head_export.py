"""Heads are exported on a schedule: to a file that later convicts a rewritten history, and to the webhook."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ledger_sizer import Ledger, ReconcileSettings, Unavailable
from ledger_sizer.reconcile.alerts import Alerts
from ledger_sizer.service.head_export import HeadExport
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.storage.database import make_engine
from ledger_sizer.verify.head_files import append_heads, read_heads
from tests.support.edited_ledgers import decision_rows, rewrite_chain, without_schema
from tests.support.ledgers import TAGS, Intruder
from tests.support.services import eventually, serving, settings_for
from tests.support.webhooks import Receiver

D = Decimal
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Exporter:
    """A ledger, its exports and an intruder with its database. `export` runs the job once."""

    def __init__(self, url: str, file: Path | None, **reconcile: Any) -> None:
        heads_file = "" if file is None else str(file)
        sections = {"reconcile": ReconcileSettings(**reconcile)}
        self.url, self.file = url, file or Path()
        self.settings = settings_for(url, ledger={"heads_file": heads_file}, sections=sections)
        self.ledger = Ledger.open(url, settings=self.settings)
        self.engine = make_engine(url)
        self.intruder = Intruder(url)
        self.again()

    def again(self) -> None:
        """Begin anew, as another process would."""
        self.export = HeadExport(self.ledger, self.engine, self.settings, Metrics())

    def decide(self, count: int, portfolio: str = "main") -> None:
        for _ in range(count):
            seq = self.ledger.heads().get(portfolio, (0, ""))[0]
            self.ledger.reserve(key=f"k{seq}", portfolio=portfolio, tags=TAGS, ttl_seconds=600)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.file.read_text().splitlines()]

    def verify(self) -> list[tuple[int | None, str]]:
        """Verify with the file of heads."""
        trusted = read_heads(self.file)
        report = without_schema(self.ledger.verify(since=trusted.newest, kept=trusted.kept))
        return [(finding.seq, finding.what) for finding in report.findings]

    def rewrite(self, seq: int) -> None:
        """Change a decision, all later hashes and the head: nothing in the database shows it."""
        self.intruder.take_guards_down()
        self.intruder.run("UPDATE decisions SET binding = 'forged' WHERE portfolio_id = 1 AND seq = :seq", seq=seq)
        head = rewrite_chain(self, seq)  # type: ignore[arg-type] - it needs only the intruder
        self.intruder.run("UPDATE portfolios SET last_hash = :head WHERE id = 1", head=head)
        assert without_schema(self.ledger.verify()).ok

    def set_back(self, seq: int) -> None:
        """Cut off the decisions after a seq, and all that they left: positions, counters, head."""
        self.intruder.take_guards_down()
        (row,) = [row for row in decision_rows(self, 1) if row[1] == seq]  # type: ignore[arg-type]
        for statement in (
            "DELETE FROM decisions WHERE portfolio_id = 1 AND seq > :seq",
            "DELETE FROM positions WHERE portfolio_id = 1 AND number > :seq",
            "UPDATE scopes SET held_e8 = (SELECT sum(held_e8) FROM positions WHERE portfolio_id = 1 AND number <= :seq)"
            " WHERE portfolio_id = 1",
        ):
            self.intruder.run(statement, seq=seq)
        self.intruder.run(
            "UPDATE portfolios SET last_seq = :seq, last_hash = :head, last_us = :us WHERE id = 1",
            seq=seq, head=row[-1], us=row[18],
        )  # fmt: skip
        assert without_schema(self.ledger.verify()).ok, "nothing in the database shows it"

    def close(self) -> None:
        self.intruder.close()
        self.engine.dispose()
        self.ledger.close()


@pytest.fixture
def exporter(database_url: str, tmp_path: Path) -> Iterator[Exporter]:
    exporter = Exporter(database_url, tmp_path / "heads.ndjson")
    yield exporter
    exporter.close()


def test_export_when_heads_move_then_each_line_has_those_that_did(exporter: Exporter) -> None:
    exporter.decide(2)
    exporter.decide(1, "other")
    assert exporter.export() is None
    exporter.decide(1)
    exporter.export()
    exporter.export()
    lines = exporter.lines()
    assert [{name: head["seq"] for name, head in line["heads"].items()} for line in lines] == [
        {"main": 2, "other": 1},
        {"main": 3},
        {},
    ]
    found = read_heads(exporter.file)
    assert found.newest == exporter.ledger.heads()
    assert found.kept == {"main": {(2, exporter.ledger.decision(2).hash)}, "other": set()}
    assert found.at == datetime.fromisoformat(lines[-1]["at"]), "a line without heads tells that nothing was decided"
    assert stat.S_IMODE(exporter.file.stat().st_mode) == 0o600


def test_export_when_another_process_goes_on_then_it_writes_only_what_moved(exporter: Exporter) -> None:
    exporter.decide(2)
    exporter.export()
    exporter.again()
    exporter.export()
    assert exporter.lines()[-1]["heads"] == {}


def test_export_when_a_crash_cut_a_line_short_then_the_next_one_is_whole(exporter: Exporter) -> None:
    exporter.decide(2)
    exporter.export()
    with exporter.file.open("ab") as file:
        file.write(b'{"at": "2026-01-01T00:00')
    exporter.decide(1)
    exporter.export()
    found = read_heads(exporter.file)
    assert (found.unreadable, found.newest["main"][0], len(found.kept["main"])) == (1, 3, 1)


def test_append_when_the_file_is_full_then_a_new_one_begins_with_all_heads(tmp_path: Path) -> None:
    file = tmp_path / "heads"
    everything = {f"p{n}": (7, f"{n:064x}") for n in range(20)}
    for seq in range(1, 60):
        moved = {"p0": (seq, "a" * 64)}
        append_heads(file, NOW, moved, lambda moved=moved: everything | moved, 8000)  # type: ignore[misc]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heads", "heads.1"]
    assert max(path.stat().st_size for path in tmp_path.iterdir()) <= 8000
    for name in ("heads", "heads.1"):
        assert len(json.loads((tmp_path / name).read_text().splitlines()[0])["heads"]) == 20
    found = read_heads(file)
    assert found.newest == everything | {"p0": (59, "a" * 64)}
    assert len(found.kept["p0"]) > 20, "heads of the file before are checked too"


def test_export_when_the_file_cannot_be_written_then_it_says_so_and_goes_on_later(
    exporter: Exporter, tmp_path: Path
) -> None:
    exporter.decide(1)
    exporter.file.mkdir()
    with pytest.raises(Unavailable, match="chain heads cannot be written"):
        exporter.export()
    exporter.file.rmdir()
    exporter.export()
    assert exporter.lines()[0]["heads"]["main"]["seq"] == 1


def test_verify_when_history_was_rewritten_before_the_newest_export_then_an_older_head_tells(
    exporter: Exporter,
) -> None:
    """The newest head was exported from the rewritten chain, and stands. The others do not."""
    for _ in range(4):
        exporter.decide(3)
        exporter.export()
    exporter.rewrite(5)
    exporter.decide(1)
    assert exporter.export() is None, "it moved on, and looks like any other"
    ((seq, what),) = exporter.verify()
    assert seq == 6
    assert "history was rewritten (2 later heads do not stand either)" in what


def test_verify_when_decisions_were_cut_off_after_their_export_then_the_head_tells(exporter: Exporter) -> None:
    exporter.decide(6)
    exporter.export()
    exporter.set_back(4)
    ((seq, what),) = exporter.verify()
    assert seq == 6
    assert "and the chain ends at 4, the newest decisions were cut off" in what
    assert exporter.export() == "went_back"
    exporter.decide(2)
    ((seq, what),) = exporter.verify()
    assert (seq, "stands there: history was rewritten" in what) == (6, True)


def test_verify_when_decisions_were_cut_off_before_their_export_then_nothing_tells(exporter: Exporter) -> None:
    """What docs/audit.md says is not seen: decided and cut off within one interval."""
    exporter.decide(4)
    exporter.export()
    exporter.decide(2)
    exporter.set_back(4)
    assert exporter.verify() == []
    assert exporter.export() is None


@pytest.mark.parametrize("again", [False, True])
def test_export_when_a_chain_went_back_then_the_job_says_so_once(exporter: Exporter, again: bool) -> None:
    exporter.decide(6)
    exporter.export()
    exporter.set_back(5)
    if again:
        exporter.again()
    assert exporter.export() == "went_back"
    assert exporter.export() is None
    assert [line["heads"].get("main", {}).get("seq") for line in exporter.lines()] == [6, 5, None]


@pytest.mark.parametrize("file", [True, False])
def test_export_when_a_webhook_is_asked_for_then_it_gets_signed_heads(
    database_url: str, tmp_path: Path, file: bool
) -> None:
    receiver = Receiver([])
    hook: dict[str, Any] = {"webhook_url": SecretStr(receiver.url), "webhook_secret": SecretStr("hush")}
    exporter = Exporter(database_url, tmp_path / "heads" if file else None, webhook_heads=True, **hook)
    assert exporter.export.wanted
    alerts = Alerts(exporter.engine, exporter.settings.reconcile)
    exporter.decide(3)
    exporter.export()
    exporter.export()
    head = exporter.ledger.heads()["main"]
    exporter.set_back(2)
    assert exporter.export() == "went_back"
    alerts.start()
    eventually(lambda: alerts.delivered == 3, seconds=30)
    alerts.close()
    receiver.close()
    exporter.close()
    told = [json.loads(body) for _, body in receiver.got]
    assert [form["event"] for form in told] == ["heads", "heads", "head_went_back"]
    assert told[0]["heads"] == {"main": {"seq": 3, "hash": head[1]}}
    assert (told[2]["portfolio"], told[2]["exported"]["seq"], told[2]["found"]["seq"]) == ("main", 3, 2)
    assert all("X-Ledger-Signature" in headers for headers, _ in receiver.got)


@pytest.mark.parametrize(("reconcile", "wanted"), [({}, False), ({"webhook_heads": True}, False)])
def test_export_when_no_place_is_named_then_it_is_not_wanted(
    database_url: str, reconcile: dict[str, Any], wanted: bool
) -> None:
    exporter = Exporter(database_url, None, **reconcile)
    assert exporter.export.wanted is wanted
    exporter.close()


def test_serve_when_a_file_is_named_then_heads_are_exported_on_schedule_and_measured(
    database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "heads.ndjson"
    with serving(database_url, jobs=True, ledger={"heads_file": str(file)}, heads_interval_seconds=1) as service:
        service.ledger.reserve(key="1", tags=TAGS)
        eventually(lambda: file.exists() and read_heads(file).newest == service.ledger.heads(), seconds=30)
        metrics = service.http.get("/metrics").text
        assert 'ledger_head_seq{portfolio="main"} 1.0' in metrics
        (exported,) = [line for line in metrics.splitlines() if line.startswith("ledger_heads_exported_timestamp")]
        assert float(exported.split()[1]) > 1_700_000_000
        assert 'ledger_job_runs_total{job="heads",result="done"}' in metrics
