"""An embedded ledger lives among a bot's own variables: what it does not use never stops it; programs stay strict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ledger_sizer import AppSettings, InvalidRequest, Ledger, LedgerSettings


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without a .env unless the test writes one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


_OF_A_BOT = [
    ("EXCHANGE", "bybit"), ("TRADING", "live"), ("SIZING", "dynamic"), ("SERVICE", "bot"), ("RECONCILE", "1"),
    ("LEDGER", "http://desk:8321"), ("exchange", "bybit"), ("LOG_LEVEL", "info"), ("LOG_LEVEL", "warn"),
    ("LOG_LEVEL", "TRACE"), ("log_level", "5"), ("SERVICE_PORT", "abc"), ("service__port", "abc"),
    ("EXCHANGE_ACCOUNTS", "main,hedge"), ("EXCHANGE__ACCOUNTS", "main"), ("EXCHANGE_ID", ""), ("EXCHANGE", "{venue}"),
    ("RECONCILE_INTERVAL_SECONDS", "often"), ("RECONCILE_ASSETS", "BTC,ETH"), ("RECONCILE", '{"enabled": 7}'),
    ("LEDGER_COLOUR", "red"), ("TRADING_MODE", "live"), ("TRADING__MODE", "live"), ("SIZING_KIND", "kelly"),
]  # fmt: skip


@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(("name", "text"), _OF_A_BOT)
def test_open_ledger_when_a_variable_is_the_bots_own_then_it_opens_with_the_defaults(
    name: str, text: str, in_file: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if in_file:
        (folder / ".env").write_text(f"{name}='{text}'\n")
    else:
        monkeypatch.setenv(name, text)
    for given in (None, AppSettings(ledger=LedgerSettings(client="bot"))):
        with Ledger.in_memory(settings=given) as ledger:
            assert ledger.reserve(key="1").budget == 1000
            assert ledger.exposure().cap == 5000


def test_open_ledger_when_settings_are_given_then_no_variable_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = AppSettings()
    for name in ("LEDGER_HOLD_TTL_SECONDS", "LEDGER_BUSY_TIMEOUT_SECONDS", "TRADING_MAX_POSITION_SIZE_USD"):
        monkeypatch.setenv(name, "abc")
    with Ledger.open(f"sqlite:///{folder}/new.db", settings=given) as ledger:
        assert ledger.reserve(key="1").granted
    for open_ledger in (Ledger.in_memory, Ledger.open):
        with pytest.raises(InvalidRequest, match=r"LEDGER_HOLD_TTL_SECONDS.*'abc'|TRADING_MAX_POSITION_SIZE_USD"):
            open_ledger()


@pytest.mark.parametrize(
    ("name", "text", "use"),
    [
        ("SERVICE_PORT", "abc", lambda settings: settings.service.port),
        ("RECONCILE_TOLERANCE", "2", lambda settings: settings.reconcile.timing),
        ("EXCHANGE_ACCOUNTS", "main", lambda settings: settings.exchange.every()),
        ("EXCHANGE__ACCOUNTS", "main", lambda settings: settings.exchange.accounts),
        ("EXCHANGE", "{", lambda settings: settings.exchange.id),
        ("LOG_LEVEL", "TRACE", None),
    ],
)
def test_read_settings_when_one_is_wrong_that_no_ledger_uses_then_programs_and_its_use_refuse_it(
    name: str, text: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(InvalidRequest, match=name.split("__", maxsplit=1)[0]):
        AppSettings.of_program()
    settings = AppSettings()
    assert repr(settings)
    if use is not None:
        with pytest.raises(InvalidRequest, match=name.split("__", maxsplit=1)[0]):
            use(settings)


@pytest.mark.parametrize(("text", "level"), [("info", "INFO"), ("Warn", "WARNING"), ("error", "ERROR")])
def test_read_settings_when_the_log_level_is_written_otherwise_then_it_is_understood(
    text: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOG_LEVEL", text)
    assert AppSettings.of_program().log_level == level


@pytest.mark.parametrize("section", ["sizing", "trading", "ledger"])
def test_read_settings_when_a_used_section_is_broken_json_then_it_is_named(
    section: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's typing error must not open a ledger somewhere else."""
    monkeypatch.setenv(section.upper(), '{"database_url": ')
    with pytest.raises(InvalidRequest, match=section.upper()):
        AppSettings()


def test_read_settings_when_dotenv_is_no_text_then_the_file_is_named(folder: Path) -> None:
    (folder / ".env").write_bytes(b"NAME=caf\xe9\n")
    with pytest.raises(InvalidRequest, match=r"\.env"):
        AppSettings()
