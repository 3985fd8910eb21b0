"""Settings: defaults, sources, errors that name the setting, and secrets that stay secret."""

from __future__ import annotations

import logging
import traceback
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from ledger_sizer import (
    AppSettings,
    DynamicSizingSettings,
    ExchangeSettings,
    InvalidRequest,
    Ledger,
    LedgerSettings,
    ReconcileSettings,
    ServiceSettings,
    TradingSettings,
    Unavailable,
)

D = Decimal
PREFIXES: dict[type[Any], tuple[str, str]] = {
    DynamicSizingSettings: ("SIZING_", "sizing"),
    TradingSettings: ("TRADING_", "trading"),
    LedgerSettings: ("LEDGER_", "ledger"),
    ServiceSettings: ("SERVICE_", "service"),
    ReconcileSettings: ("RECONCILE_", "reconcile"),
    ExchangeSettings: ("EXCHANGE_", "exchange"),
}
EXAMPLES: list[tuple[type[Any], str, str, object]] = [
    (DynamicSizingSettings, "enabled", "true", True),
    (DynamicSizingSettings, "min_allocation_fraction", "0.10", D("0.1")),
    (DynamicSizingSettings, "max_allocation_fraction", "0.9", D("0.9")),
    (DynamicSizingSettings, "max_portfolio_exposure", "12345678901.12345678", D("12345678901.12345678")),
    (TradingSettings, "max_position_size_usd", "2500.5", D("2500.5")),
    (TradingSettings, "delta_drift_tolerance", "0.05", D("0.05")),
    (LedgerSettings, "database_url", "postgresql://bot@db/ledger", "postgresql://bot@db/ledger"),
    (LedgerSettings, "hold_ttl_seconds", "90", 90),
    (LedgerSettings, "batch_size_max", "10", 10),
    (LedgerSettings, "queue_size_max", "20", 20),
    (LedgerSettings, "busy_timeout_seconds", "7", 7),
    (LedgerSettings, "retries_max", "0", 0),
    (LedgerSettings, "close_timeout_seconds", "8", 8),
    (ServiceSettings, "host", "127.0.0.2", "127.0.0.2"),
    (ServiceSettings, "port", "9000", 9000),
    (ReconcileSettings, "enabled", "true", True),
    (ReconcileSettings, "interval_seconds", "30", 30),
    (ReconcileSettings, "tolerance", "0.01", D("0.01")),
    (ReconcileSettings, "confirmations", "3", 3),
    (ReconcileSettings, "stale_after_seconds", "99", 99),
    (ExchangeSettings, "id", "okx", "okx"),
    (ExchangeSettings, "api_key", "abc", SecretStr("abc")),
    (ExchangeSettings, "api_secret", "def", SecretStr("def")),
    (ExchangeSettings, "base_url", "http://127.0.0.1:9", "http://127.0.0.1:9"),
]
EXAMPLE_IDS = [f"{PREFIXES[kind][1]}.{name}" for kind, name, _, _ in EXAMPLES]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without a .env unless the test writes one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("kind", "defaults"),
    [
        (
            DynamicSizingSettings,
            {
                "enabled": False,
                "min_allocation_fraction": D("0.3"),
                "max_allocation_fraction": D("1.0"),
                "max_portfolio_exposure": D(5000),
            },
        ),
        (TradingSettings, {"max_position_size_usd": D(1000), "delta_drift_tolerance": D("0.02")}),
        (LedgerSettings, {"database_url": "sqlite:///ledger.db", "hold_ttl_seconds": 60}),
        (ServiceSettings, {"host": "127.0.0.1", "port": 8321}),
        (ReconcileSettings, {"enabled": False}),
        (ExchangeSettings, {"api_key": None, "api_secret": None, "base_url": None}),
    ],
)
def test_read_settings_when_nothing_is_set_then_they_are_the_contracts_defaults(
    kind: type[Any], defaults: dict[str, object]
) -> None:
    alone, nested = kind(), getattr(AppSettings(), PREFIXES[kind][1])
    for name, value in defaults.items():
        assert getattr(alone, name) == value
        assert getattr(nested, name) == value


def test_read_settings_when_money_is_read_then_every_default_is_a_decimal() -> None:
    settings = AppSettings()
    for kind in (settings.sizing, settings.trading, settings.reconcile):
        found = [name for name, value in kind.model_dump().items() if isinstance(value, float)]
        assert not found, f"floats in {type(kind).__name__}: {found}"


def test_read_settings_when_the_maximum_per_position_is_asked_then_trading_alone_has_it() -> None:
    holders = [kind for kind in PREFIXES if "max_position_size_usd" in kind.model_fields]
    assert holders == [TradingSettings]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in PREFIXES for name in kind.model_fields])
def test_read_settings_when_any_field_is_in_the_environment_then_it_is_taken_or_named(
    kind: type[Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable, nonsense = f"{PREFIXES[kind][0]}{name}".upper(), "sqlite:///nonsense"
    monkeypatch.setenv(variable, nonsense)
    any_text = kind.model_fields[name].annotation in (str, str | None, SecretStr | None)
    if any_text and name not in ("account", "portfolio", "base_url"):  # names and URLs have a form
        assert getattr(kind(), name) in (nonsense, SecretStr(nonsense))
    else:
        with pytest.raises(InvalidRequest, match=variable):
            kind()


@pytest.mark.parametrize(("kind", "name", "text", "value"), EXAMPLES, ids=EXAMPLE_IDS)
def test_read_settings_when_the_environment_sets_one_then_its_class_and_the_whole_see_it(
    kind: type[Any], name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix, section = PREFIXES[kind]
    monkeypatch.setenv(f"{prefix}{name}".upper(), text)
    assert getattr(kind(), name) == value
    assert getattr(getattr(AppSettings(), section), name) == value


@pytest.mark.parametrize(("kind", "name", "text", "value"), EXAMPLES, ids=EXAMPLE_IDS)
def test_read_settings_when_the_environment_nests_one_then_the_whole_sees_it(
    kind: type[Any], name: str, text: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = PREFIXES[kind][1]
    monkeypatch.setenv(f"{section}__{name}".upper(), text)
    assert getattr(getattr(AppSettings(), section), name) == value


@pytest.mark.parametrize(("kind", "name", "text", "value"), EXAMPLES, ids=EXAMPLE_IDS)
@pytest.mark.parametrize("nested", [False, True])
def test_read_settings_when_dotenv_sets_one_then_it_counts(
    kind: type[Any], name: str, text: str, value: object, nested: bool, folder: Path
) -> None:
    prefix, section = PREFIXES[kind]
    variable = f"{section}__{name}" if nested else f"{prefix}{name}"
    (folder / ".env").write_text(f"UNRELATED=1\n{variable.upper()}={text}\n")
    assert getattr(getattr(AppSettings(), section), name) == value
    if not nested:
        assert getattr(kind(), name) == value


def test_read_settings_when_places_disagree_then_argument_beats_environment_beats_dotenv(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / ".env").write_text("TRADING_MAX_POSITION_SIZE_USD=1\nTRADING_DELTA_DRIFT_TOLERANCE=0.1\n")
    monkeypatch.setenv("TRADING_MAX_POSITION_SIZE_USD", "2")
    settings = AppSettings().trading
    assert (settings.max_position_size_usd, settings.delta_drift_tolerance) == (2, D("0.1"))
    assert TradingSettings(max_position_size_usd=D(3)).max_position_size_usd == 3


def test_read_settings_when_prefix_and_nesting_are_mixed_then_both_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZING_MIN_ALLOCATION_FRACTION", "0.5")
    monkeypatch.setenv("SIZING__ENABLED", "true")
    sizing = AppSettings().sizing
    assert (sizing.enabled, sizing.min_allocation_fraction) == (True, D("0.5"))


def test_change_settings_when_they_are_made_then_it_is_refused() -> None:
    settings = AppSettings()
    with pytest.raises(ValueError, match="frozen"):
        settings.trading.max_position_size_usd = D(9)  # type: ignore[misc]


BAD: list[tuple[type[Any], str, Any]] = [
    (DynamicSizingSettings, "enabled", "maybe"),
    (DynamicSizingSettings, "min_allocation_fraction", "-0.1"),
    (DynamicSizingSettings, "min_allocation_fraction", "nan"),
    (DynamicSizingSettings, "max_allocation_fraction", "1.1"),
    (DynamicSizingSettings, "max_portfolio_exposure", "-1"),
    (DynamicSizingSettings, "max_portfolio_exposure", "inf"),
    (DynamicSizingSettings, "max_portfolio_exposure", "100000000000000"),
    (TradingSettings, "max_position_size_usd", "0"),
    (TradingSettings, "max_position_size_usd", "a lot"),
    (TradingSettings, "delta_drift_tolerance", "1.01"),
    (LedgerSettings, "database_url", "mysql://host/db"),
    (LedgerSettings, "database_url", ""),
    (LedgerSettings, "hold_ttl_seconds", "0"),
    (LedgerSettings, "hold_ttl_seconds", "2592001"),
    (LedgerSettings, "batch_size_max", "0"),
    (LedgerSettings, "queue_size_max", "0"),
    (LedgerSettings, "busy_timeout_seconds", "0"),
    (LedgerSettings, "retries_max", "-1"),
    (LedgerSettings, "close_timeout_seconds", "0"),
    (LedgerSettings, "portfolios", "declare"),
    (ServiceSettings, "port", "65536"),
    (ServiceSettings, "port", "http"),
    (ReconcileSettings, "interval_seconds", "0"),
    (ReconcileSettings, "tolerance", "2"),
    (ReconcileSettings, "confirmations", "0"),
    (ReconcileSettings, "stale_after_seconds", "0"),
]


@pytest.mark.parametrize(("kind", "name", "text"), BAD)
def test_read_settings_when_a_value_is_bad_then_the_error_names_setting_variable_and_value(
    kind: type[Any], name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"{PREFIXES[kind][0]}{name}".upper()
    monkeypatch.setenv(variable, text)
    for read in (kind, AppSettings.of_program):
        with pytest.raises(InvalidRequest) as refused:
            read()
        assert name in str(refused.value)
        assert variable in str(refused.value)
        if name != "database_url":  # it may hold a password
            assert repr(text) in str(refused.value)
        assert refused.value.field is not None
        assert refused.value.field.endswith(name)


@pytest.mark.parametrize(("kind", "name", "text"), BAD[:1] + BAD[7:8] + BAD[10:13] + BAD[-1:])
def test_read_settings_when_a_nested_value_is_bad_then_the_error_names_that_variable(
    kind: type[Any], name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variable = f"{PREFIXES[kind][1]}__{name}".upper()
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidRequest) as refused:
        AppSettings.of_program()
    assert variable in str(refused.value)


@pytest.mark.parametrize("value", [0.1, True, D("NaN"), None])
def test_make_settings_when_money_is_not_exact_then_it_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="max_position_size_usd"):
        TradingSettings(max_position_size_usd=value)
    with pytest.raises(InvalidRequest, match="min_allocation_fraction"):
        DynamicSizingSettings(min_allocation_fraction=value)


def test_make_settings_when_min_fraction_is_above_max_then_both_values_are_named() -> None:
    with pytest.raises(InvalidRequest, match=r"min_allocation_fraction 0\.9 is above max_allocation_fraction 0\.5"):
        DynamicSizingSettings(min_allocation_fraction=D("0.9"), max_allocation_fraction=D("0.5"))
    DynamicSizingSettings(min_allocation_fraction=D("0.5"), max_allocation_fraction=D("0.5"))


def test_open_ledger_when_no_url_is_given_then_the_settings_name_it(folder: Path) -> None:
    with Ledger.open() as ledger:
        assert ledger.reserve(key="1").granted
    assert (folder / "ledger.db").is_file()


@pytest.mark.parametrize("variable", ["LEDGER_REQUIRED_TAGS", "LEDGER__REQUIRED_TAGS"])
@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("strategy,bot", ("strategy", "bot")), (" strategy , bot, bot,", ("strategy", "bot")), ("bot", ("bot",)),
        ('["strategy", "bot"]', ("strategy", "bot")), ("", ()), ("[]", ()),
    ],
)  # fmt: skip
def test_read_settings_when_tags_are_required_then_names_stand_with_commas_or_as_a_list(
    variable: str, text: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    assert AppSettings().ledger.required_tags == names
    assert AppSettings(ledger=LedgerSettings(required_tags=names)).ledger.required_tags == names


@pytest.mark.parametrize(
    ("text", "at_fault"),
    [
        ("strategy,Bot", "'Bot'"), ('["strategy", 7]', "7"), ("bot=a", "'bot=a'"), ("portfolio", "'portfolio'"),
        ("external", "reconciliation's own"), ('["bot"', "LEDGER_REQUIRED_TAGS"), ('[["bot"]]', "['bot']"),
        (",".join(f"t{number}" for number in range(17)), "at most 16"),
    ],
)  # fmt: skip
def test_read_settings_when_a_required_tag_is_no_name_then_it_is_named(
    text: str, at_fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEDGER_REQUIRED_TAGS", text)
    with pytest.raises(InvalidRequest, match="LEDGER_REQUIRED_TAGS") as refused:
        LedgerSettings()
    assert at_fault in str(refused.value)
    assert refused.value.field == "required_tags"
    with pytest.raises(InvalidRequest, match="required_tags"):
        LedgerSettings(required_tags={"bot": "a"})  # type: ignore[arg-type]


# --- secrets -----------------------------------------------------------------------------------------------------


def everything_said(settings: Any) -> str:
    return f"{settings!r} {settings} {settings.model_dump_json()} {settings.model_dump()}"


def test_show_settings_when_they_hold_secrets_then_none_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXCHANGE_API_KEY", "hunter2key")
    monkeypatch.setenv("EXCHANGE__API_SECRET", "hunter2secret")
    settings = AppSettings()
    assert settings.exchange.api_key is not None
    assert settings.exchange.api_key.get_secret_value() == "hunter2key"
    assert settings.exchange.api_secret is not None
    assert settings.exchange.api_secret.get_secret_value() == "hunter2secret"
    assert "hunter2" not in everything_said(settings) + everything_said(settings.exchange)


def test_show_settings_when_the_database_url_has_a_password_then_it_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LEDGER_DATABASE_URL", "postgresql://bot:hunter2@db/ledger")
    settings = AppSettings()
    assert "hunter2" not in f"{settings!r} {settings} {settings.ledger!r} {settings.ledger}"


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("LEDGER_DATABASE_URL", "mysql://bot:hunter2@db/ledger"),
        ("LEDGER_DATABASE_URL", "postgres://bot:hunter2@db/ledger"),
        ("LEDGER__DATABASE_URL", "mysql://bot:hunter2@db/ledger"),
        ("EXCHANGE", '{"api_key": "hunter2", "id": 5}'),
        ("EXCHANGE", '{"api_secret": "hunter2", "base_url": []}'),
        ("EXCHANGE", '{"api_key": ["hunter2"]}'),
    ],
)
def test_read_settings_when_a_bad_value_holds_a_secret_then_the_error_does_not_show_it(
    variable: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(InvalidRequest) as refused:
        AppSettings.of_program()
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_open_ledger_when_the_database_is_away_then_neither_error_nor_log_shows_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    password = "hunter" + "2"  # in two parts, because a traceback quotes this source line
    with pytest.raises(Unavailable, match="cannot open postgresql") as refused:
        Ledger.open(f"postgresql://bot:{password}@127.0.0.1:1/ledger")
    assert "hunter2" not in "".join(traceback.format_exception(refused.value)) + caplog.text


# --- settings that cannot work together ----------------------------------------------------------------------------

UNWORKABLE: list[tuple[dict[str, Any], str, str]] = [
    ({"interval_seconds": 600}, "interval_seconds 600", "RECONCILE_STALE_AFTER_SECONDS"),
    ({"interval_seconds": 300}, "interval_seconds 300", "every reservation be denied"),
    ({"stale_after_seconds": 60}, "stale_after_seconds 60", "RECONCILE_INTERVAL_SECONDS"),
    ({"grace_seconds": 300}, "grace_seconds 300", "never judged"),
    ({"grace_seconds": 3600, "stale_after_seconds": None}, "grace_seconds 3600", "RECONCILE_EXPIRED_SECONDS"),
    ({"confirmations": 61}, "60 x interval_seconds 60", "always be an unknown position"),
    ({"interval_seconds": 3600, "stale_after_seconds": None}, "interval_seconds 3600", "RECONCILE_CONFIRMATIONS"),
    ({"trust_warning_seconds": 240}, "trust_warning_seconds 240", "before every run"),
    ({"trust_warning_seconds": 9, "stale_after_seconds": None}, "trust_warning_seconds 9", "which has none"),
    ({"tolerance": D(1)}, "RECONCILE_TOLERANCE", "less than 1"),
]


@pytest.mark.parametrize(("values", "names", "says"), UNWORKABLE)
def test_make_settings_when_they_cannot_work_together_then_the_error_says_why_and_the_cure(
    values: dict[str, Any], names: str, says: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ReconcileSettings(**values)
    assert names in str(refused.value)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("values", "warns_at"),
    [
        ({}, 100), ({"interval_seconds": 299}, 1), ({"interval_seconds": 200}, 50), ({"interval_seconds": 1}, 100),
        ({"grace_seconds": 299}, 100), ({"confirmations": 59}, 100), ({"trust_warning_seconds": 239}, 239),
        ({"trust_warning_seconds": 0}, 0), ({"stale_after_seconds": None}, 0), ({"tolerance": D("0.99")}, 100),
        ({"stale_after_seconds": 61}, 1),
    ],
)  # fmt: skip
def test_make_settings_when_they_can_work_together_then_they_say_when_the_end_of_trust_is_announced(
    values: dict[str, Any], warns_at: int
) -> None:
    settings = ReconcileSettings(**values)
    assert settings.timing.warns_at == warns_at
