"""What the desk's chain records: API keys made and revoked, and the settings of a start."""

from __future__ import annotations

import json

import pytest

from ledger_sizer import (
    AppSettings,
    Busy,
    InvalidRequest,
    Ledger,
    LedgerSettings,
    ReconcileSettings,
    Unavailable,
)  # fmt: skip
from ledger_sizer.model.caller import Caller, calling_as
from ledger_sizer.service.api_keys import create_key, list_keys, revoke_key
from ledger_sizer.service.bootstrap import running_components
from ledger_sizer.service.desk_records import key_recorder, settings_in_force
from ledger_sizer.storage.database import make_engine
from tests.conftest import NewDatabase
from tests.support.services import settings_for

ANN, BOB = Caller("cli:ann", "cli"), Caller("cli:bob", "deploy")


def said(ledger: Ledger) -> list[tuple[str | None, str, str, str]]:
    """Return actor, about, event and note of the desk's remarks, oldest first."""
    requests = [(one.actor, json.loads(one.request)) for one in ledger.history("*", ascending=True)]
    return [(actor, form["about"], form["event"], form["note"]) for actor, form in requests]


def test_keys_when_made_and_revoked_then_the_desk_says_who_did_it_and_what_they_may(database_url: str) -> None:
    engine = make_engine(database_url)
    with Ledger.open(database_url) as ledger:
        record = key_recorder(ledger)
        with calling_as(ANN):
            one = create_key(engine, "bot", "trade", ["main", "alt"], record=record).key
        with calling_as(BOB):
            two = create_key(engine, "ops", "admin", record=record).key
            revoke_key(engine, one.key_id, record=record)
            revoke_key(engine, one.key_id, record=record)
        bound = f"name bot, role trade, client {one.key_id}, portfolios main, alt"
        assert said(ledger) == [
            ("cli:ann", f"key-{one.key_id}", "created", bound),
            ("cli:bob", f"key-{two.key_id}", "created", f"name ops, role admin, client {two.key_id}, portfolios all"),
            ("cli:bob", f"key-{one.key_id}", "revoked", bound),
        ]
        assert ledger.verify().ok
    engine.dispose()


def test_keys_when_bound_to_tags_then_the_desk_keeps_the_tags_and_a_long_text_is_cut(
    new_database: NewDatabase,
) -> None:
    url = new_database("sqlite")
    engine = make_engine(url)
    with Ledger.open(url) as ledger:
        record = key_recorder(ledger)
        one = create_key(engine, "bot", "trade", tags={"bot": "a", "venue": ["okx", "bybit"]}, record=record).key
        long = {"bot": [f"{number:02}{'x' * 80}" for number in range(16)]}
        two = create_key(engine, "many", "trade", tags=long, record=record).key
        assert [key.tags for key in list_keys(engine)] == [one.tags, two.tags]
        assert one.caller.tags == {"bot": "a", "venue": ("bybit", "okx")}
        details = [json.loads(record.request)["details"] for record in ledger.history("*", ascending=True)]
        assert details[0] == {"tags": '{"bot":"a","venue":["bybit","okx"]}'}
        assert details[1]["tags"].endswith("xxx...")
        for wrong in ({"Bot": "a"}, {"external": "exchange"}, {"bot": []}, {"venue": "*"}, "bot=a"):
            with pytest.raises(InvalidRequest) as refused:
                create_key(engine, "x", "trade", tags=wrong, record=record)  # type: ignore[arg-type]
            assert str(refused.value.field).startswith("tags")
        assert len(list_keys(engine)) == 2
    engine.dispose()


def test_keys_when_the_change_fails_after_its_record_then_no_key_is_there_and_a_retry_finds_the_record(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(database_url)
    with Ledger.open(database_url) as ledger:
        record = key_recorder(ledger)
        kept = create_key(engine, "kept", "trade", record=record).key
        with monkeypatch.context() as patch:
            patch.setattr("ledger_sizer.service.api_keys.write_transaction", _dies)
            with pytest.raises(KeyboardInterrupt), calling_as(ANN):
                create_key(engine, "lost", "trade", record=record)
            with pytest.raises(KeyboardInterrupt), calling_as(ANN):
                revoke_key(engine, kept.key_id, record=record)
        assert [key.name for key in list_keys(engine)] == ["kept"]
        assert [event for _, _, event, _ in said(ledger)] == ["created", "created", "revoked"]
        with calling_as(BOB):
            assert revoke_key(engine, kept.key_id, record=record).revoked_at is not None
        assert len(said(ledger)) == 3, "it was recorded already"
    engine.dispose()


def _dies(*_arguments: object) -> None:
    raise KeyboardInterrupt


def test_keys_when_it_cannot_be_recorded_then_nothing_is_made(database_url: str) -> None:
    def refuse(*_: object) -> None:
        raise Unavailable("no")

    engine = make_engine(database_url)
    with pytest.raises(Unavailable):
        create_key(engine, "bot", "trade", record=refuse)
    assert list_keys(engine) == []
    engine.dispose()


def test_start_when_it_begins_then_the_desk_has_the_settings_in_force_and_no_secret(database_url: str) -> None:
    reconcile = ReconcileSettings(
        webhook_url="https://hooks.example/T0", webhook_secret="hush", baselines={"bybit/main/BTC": "0.5"}
    )
    settings = settings_for(database_url, sections={"reconcile": reconcile}, ledger={"hold_ttl_seconds": 77})
    for _ in range(2):
        with running_components(settings) as parts:
            newest = parts.ledger.history("*")[0]
            assert said(parts.ledger)[-1][:3] == ("ledger", "service", "started")
    details = json.loads(newest.request)["details"]
    assert details == settings_in_force(settings)
    assert details["ledger.hold_ttl_seconds"] == "77"
    assert details["trading.max_position_size_usd"] == "1000"
    assert json.loads(details["reconcile.baselines"]) == {"bybit/main/BTC": "0.5"}
    for secret in ("hooks.example", "hush", "database_url", "sqlite", "postgresql", "127.0.0.1"):
        assert secret not in newest.request
    with Ledger.open(database_url) as ledger:
        assert len(said(ledger)) == 2, "opening an embedded ledger records nothing"
        assert ledger.verify().ok


def test_start_when_the_settings_are_of_the_largest_size_then_they_are_cut_and_recorded(
    new_database: NewDatabase,
) -> None:
    url = new_database("sqlite")
    many = {f"bybit/account{number}/BTC": "0.000000000000000001" for number in range(200)}
    settings = settings_for(url, sections={"reconcile": ReconcileSettings(baselines=many)})
    with running_components(settings) as parts:
        assert parts.ledger.history("*")[0].command == "remark"


def test_start_when_nothing_can_be_written_then_it_starts_all_the_same(
    new_database: NewDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger_sizer.service.desk_records._START_SECONDS_MAX", 0.2)
    url = new_database("sqlite")
    locker = make_engine(url)
    settings = settings_for(url, ledger={"busy_timeout_seconds": 1, "retries_max": 0})
    with locker.begin(), running_components(settings) as parts:  # the first holds the write lock
        assert parts.ledger.portfolios() == []
        with pytest.raises(Busy):
            parts.ledger.reserve(key="a")
        assert said(parts.ledger) == []
    locker.dispose()


def test_read_settings_when_a_section_gets_a_setting_then_each_named_one_exists() -> None:
    settings = AppSettings(ledger=LedgerSettings(database_url="sqlite:///secret.db"))
    assert all(" " not in name for name in settings_in_force(settings))
    assert len(settings_in_force(settings)) == 38
