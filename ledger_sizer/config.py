"""Settings, read from the environment and `.env` by pydantic-settings. Every field states its unit and range.

Each class reads its own prefix (`SIZING_ENABLED=true`). `AppSettings` holds them all and also reads nested names
(`SIZING__ENABLED=true`). A bad value raises `InvalidRequest` that names the setting.
"""

import json
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_settings import NoDecode, SettingsConfigDict

from ledger_sizer.model.asset_policies import DOLLARS, asset_names, asset_patterns
from ledger_sizer.model.choices import AssetPolicy, DriftKind, DriftPolicy, LedgerCreation, PortfolioCreation
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.exchange_account import Exact, ExchangeAccountSettings
from ledger_sizer.model.reconcile_timing import ReconcileTiming
from ledger_sizer.model.reconciliation import EXCESS_KINDS
from ledger_sizer.model.settings_sources import Sections, Settings, read_later, require_readable
from ledger_sizer.model.tags import EXTERNAL_TAG, TAGS_MAX, is_dimension


def _tag_names(value: Any) -> tuple[str, ...]:
    """Return names of tags, each once: from a list, or from text such as `strategy,bot` or `["strategy", "bot"]`."""
    if isinstance(value, str):
        texts = [name.strip() for name in value.split(",")]
        value = json.loads(value) if value.lstrip().startswith("[") else [name for name in texts if name]
    if not isinstance(value, list | tuple):
        raise ValueError(f"must be names of tags such as strategy,bot, got {value!r:.100}")
    for name in value:
        if not is_dimension(name):
            raise ValueError(f"{name!r:.100} is no name of a tag: lower case letters, digits and '_', not 'portfolio'")
        if name == EXTERNAL_TAG:
            raise ValueError(f"{name!r} is the reconciliation's own tag, which no reservation can have")
    names = tuple(dict.fromkeys(value))
    if len(names) > TAGS_MAX:
        raise ValueError(f"at most {TAGS_MAX} tags, as a reservation has, got {len(names)}")
    return names


TagNames = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_tag_names)]


class DynamicSizingSettings(Settings):
    """How a signal score becomes a budget. Off by default: every score then gets the full per-position maximum."""

    model_config = SettingsConfigDict(env_prefix="SIZING_")

    enabled: bool = Field(False, description="Scale the budget with the signal score; off means flat sizing.")
    min_allocation_fraction: Exact = Field(
        Decimal("0.3"), ge=0, le=1, description="Fraction of the per-position maximum at score 0."
    )
    max_allocation_fraction: Exact = Field(
        Decimal("1.0"), ge=0, le=1, description="Fraction of the per-position maximum at score 1."
    )
    max_portfolio_exposure: Exact = Field(
        Decimal("5000"), ge=0, le=Decimal("90000000000"), description="Cap of a new portfolio, USD."
    )

    @model_validator(mode="after")
    def _fractions_in_order(self) -> Self:
        if self.min_allocation_fraction > self.max_allocation_fraction:
            raise ValueError(
                f"min_allocation_fraction {self.min_allocation_fraction} is above "
                f"max_allocation_fraction {self.max_allocation_fraction}"
            )
        return self


class TradingSettings(Settings):
    """Largest size of one position, and largest difference of its two legs' quantities."""

    model_config = SettingsConfigDict(env_prefix="TRADING_")

    max_position_size_usd: Exact = Field(
        Decimal("1000"), gt=0, le=Decimal("90000000000"), description="Most one position may cost, USD."
    )
    delta_drift_tolerance: Exact = Field(
        Decimal("0.02"), ge=0, le=1, description="Largest relative difference of the two legs' quantities."
    )


class LedgerSettings(Settings):
    """Where the ledger is stored, how its writer works, and when it archives."""

    model_config = SettingsConfigDict(env_prefix="LEDGER_")

    database_url: str = Field(
        "sqlite:///ledger.db", repr=False, description="SQLAlchemy URL: sqlite:///FILE or postgresql://..."
    )
    create: LedgerCreation = Field(
        "new", description="When a missing SQLite file is created; new: where no ledger was before; always: there too."
    )
    client: str = Field(
        "", max_length=128, description="Whose idempotency keys it uses, such as bot-a; empty: embedded, or cli."
    )
    portfolios: PortfolioCreation = Field(
        "create",
        description="What begins a portfolio; create: its first reservation, adoption or cap; declared: only an admin "
        "who gives it a cap, so that a mistyped name is an error.",
    )
    required_tags: TagNames = Field(
        (), description="Tags that every reservation and adoption must have, such as strategy,bot; or a JSON list."
    )
    hold_ttl_seconds: int = Field(60, ge=1, le=30 * 24 * 3600, description="Life of a hold whose request names none.")
    unknown_alert_seconds: int = Field(
        900,
        ge=0,
        le=30 * 24 * 3600,
        description="Age at which a hold is told of whose order's fate is not known, seconds; 0 never tells.",
    )
    denial_repeat_seconds: int = Field(
        10,
        ge=0,
        le=3600,
        description="A denial that repeats is recorded 50 times, then once in this interval; 0 records each.",
    )
    batch_size_max: int = Field(256, ge=1, le=10_000, description="Most commands in one commit.")
    queue_size_max: int = Field(10_000, ge=1, le=1_000_000, description="Most commands that may wait; then Busy.")
    clock_jump_seconds: int = Field(
        60,
        ge=1,
        le=86_400,
        description="Largest jump of the clock that is believed; after one beyond, nothing is decided.",
    )
    busy_timeout_seconds: int = Field(5, ge=1, le=300, description="Longest wait for another writer's lock.")
    retries_max: int = Field(5, ge=0, le=100, description="Retries of a batch after a conflict or a lost connection.")
    close_timeout_seconds: int = Field(30, ge=1, le=3600, description="Longest wait for the queue to drain at close.")
    connect_timeout_seconds: int = Field(5, ge=2, le=300, description="Longest wait for a connection to one server.")
    database_timeout_seconds: int = Field(
        10, ge=1, le=3600, description="Longest silence of a database server; at least twice the wait for a lock."
    )

    archive_dir: str = Field(
        "", description="Folder of archive files; empty: where each was written, new ones in ledger-archive."
    )
    archive_after_days: int = Field(
        0, ge=0, le=36_500, description="Age at which the service archives decisions, in days; 0 never does."
    )
    archive_interval_seconds: int = Field(3600, ge=1, le=604_800, description="Time between the service's archivings.")
    key_window_days: int = Field(
        30, ge=1, le=36_500, description="Keys are answered at least this long: no younger decision is archived."
    )
    heads_file: str = Field(
        "", description="File that the service appends the chain heads to, for verify --since-head; empty: none."
    )
    heads_file_bytes_max: int = Field(
        16 * 1024 * 1024, ge=64 * 1024, le=2**40, description="Size at which that file is renamed to FILE.1, bytes."
    )

    @property
    def server_timeout_seconds(self) -> int:
        """Longest wait for one answer of a database server. An answer may come only after another writer's lock."""
        return max(self.database_timeout_seconds, 2 * self.busy_timeout_seconds)

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if not value.startswith(("sqlite:///", "sqlite+pysqlite:///", "postgresql://", "postgresql+psycopg://")):
            scheme = value.partition(":")[0]
            raise ValueError(f"must start with sqlite:/// or postgresql://, not {scheme!r}")
        return value


class ServiceSettings(Settings):
    """Where the HTTP service listens, its limits, and how it runs its jobs."""

    model_config = SettingsConfigDict(env_prefix="SERVICE_")

    host: str = Field("127.0.0.1", description="Address to listen on; other than loopback only with API keys.")
    port: int = Field(8321, ge=0, le=65535, description="Port to listen on; 0 picks a free one.")
    connections_max: int = Field(1000, ge=1, le=100_000, description="Most open connections; then 503.")
    connections_per_client_max: int = Field(
        500, ge=0, le=100_000, description="Most open connections of one client address; then 503. 0 for no bound."
    )
    concurrency_max: int = Field(2000, ge=1, le=100_000, description="Most requests in progress; then 503.")
    event_streams_max: int = Field(100, ge=0, le=10_000, description="Most open event streams; then 503.")
    body_bytes_max: int = Field(1024 * 1024, ge=1024, le=64 * 1024 * 1024, description="Largest request body, bytes.")
    header_bytes_max: int = Field(32 * 1024, ge=1024, le=1024 * 1024, description="Largest request head, bytes.")
    header_timeout_seconds: int = Field(10, ge=1, le=600, description="Longest wait for a request's head.")
    body_timeout_seconds: int = Field(10, ge=1, le=600, description="Longest wait for a request's body.")
    answer_timeout_seconds: int = Field(30, ge=1, le=600, description="Longest wait for the ledger's answer; then 503.")
    keep_alive_seconds: int = Field(75, ge=1, le=3600, description="How long an idle connection is kept.")
    stop_timeout_seconds: int = Field(20, ge=1, le=600, description="Longest wait for requests in progress at a stop.")
    key_cache_seconds: int = Field(5, ge=0, le=300, description="A revoked API key may work this much longer.")
    heartbeat_seconds: int = Field(15, ge=1, le=300, description="Time between comments on a silent event stream.")
    event_poll_ms: int = Field(250, ge=10, le=60_000, description="Time between looks for new events, milliseconds.")
    sweep_interval_seconds: int = Field(1, ge=1, le=3600, description="Time between sweeps for expired holds.")
    heads_interval_seconds: int = Field(60, ge=1, le=86_400, description="Time between exports of the chain heads.")
    tracing: bool = Field(False, description="Send OpenTelemetry traces (extra otel; OTEL_... says where to).")
    lease_seconds: int = Field(15, ge=3, le=600, description="Another replica takes the jobs over after this silence.")


class ReconcileSettings(Settings):
    """When the ledger is compared with the exchange, what a difference does, and when grants stop."""

    model_config = SettingsConfigDict(env_prefix="RECONCILE_")

    enabled: bool = Field(False, description="Run the reconciliation on a schedule.")
    interval_seconds: int = Field(60, ge=1, le=86_400, description="Time between runs.")
    tolerance: Exact = Field(Decimal("0.001"), ge=0, lt=1, description="Relative difference that is no drift.")
    dust_usd: Exact = Field(
        Decimal(1), ge=0, description="A spot difference worth less, in USD, is no drift; 0 switches this off."
    )
    interest_usd: Exact = Field(
        Decimal(100),
        ge=0,
        description="Most that coins may grow by interest in a day, in USD, without a freeze.",
    )
    confirmations: int = Field(2, ge=1, le=100, description="Runs in a row that must agree on a drift.")
    stale_after_seconds: int | None = Field(
        300, ge=1, le=86_400, description="Age of the last good run that stops grants; empty does not enforce it."
    )
    trust_warning_seconds: int | None = Field(
        None, ge=0, le=86_400, description="Trust left at which its end is announced; empty: a third; 0: not announced."
    )
    grace_seconds: int = Field(10, ge=0, le=3600, description="A market that moved this lately is not judged.")
    expired_seconds: int = Field(3600, ge=1, le=86_400, description="How long an expired hold's fill is looked for.")
    run_seconds_max: int = Field(120, ge=5, le=3600, description="A run that takes longer may not write its result.")
    freeze_scope: Literal["portfolio", "venue"] = Field(
        "portfolio", description="What a drift freezes; venue: only reservations with that tag."
    )
    quote_assets: tuple[str, ...] = Field(DOLLARS, description="Dollars: money here, not positions.")
    assets: Annotated[dict[str, AssetPolicy], AfterValidator(asset_patterns)] = Field(
        {}, description='Whose money an asset is, as {"binance/*/LD*": "ignore", "*/*/BNB": "fees"}.'
    )
    baselines: Annotated[dict[str, Exact], AfterValidator(asset_names)] = Field(
        {}, description='Spot balances that are no positions, as {"bybit/main/BTC": "0.5"}.'
    )
    policy_fetch_failed: DriftPolicy = Field("alert", description="An account, or part of it, was not fetched.")
    policy_quantity_differs: DriftPolicy = Field("freeze", description="Another quantity than the ledger's.")
    policy_unknown_position: DriftPolicy = Field("freeze", description="A position that the ledger lacks.")
    policy_missing_position: DriftPolicy = Field("freeze", description="A position that the exchange lacks.")
    policy_side_flipped: DriftPolicy = Field("freeze", description="Long where the ledger says short, or the reverse.")
    policy_legs_unequal: DriftPolicy = Field("alert", description="Bought and sold sides are not of one size.")
    policy_balance_below_holds: DriftPolicy = Field("alert", description="Free quote balance below the sum of holds.")
    policy_late_fill: DriftPolicy = Field("alert", description="A fill of a hold that is over, or of unknown fate.")
    policy_unreadable: DriftPolicy = Field("alert", description="A position that was listed and not understood.")
    policy_interest: DriftPolicy = Field("record", description="Coins that grew as by interest, earned or owed.")
    policy_expired_hold: DriftPolicy = Field("record", description="A hold that ran out with nothing to show for it.")
    webhook_url: SecretStr | None = Field(None, description="Where alerts are posted as JSON.")
    webhook_secret: SecretStr | None = Field(None, description="Signs them: X-Ledger-Signature, HMAC-SHA256, hex.")
    webhook_attempts_max: int = Field(12, ge=1, le=1000, description="Attempts for one alert, ever longer apart.")

    webhook_heads: bool = Field(False, description="Post the chain heads there too, each time they are exported.")

    @model_validator(mode="after")
    def _policies_fit_kinds(self) -> Self:
        for kind in get_args(DriftKind):
            if self.policy(kind) in ("adopt", "close") and kind not in EXCESS_KINDS:
                raise ValueError(
                    f"policy_{kind} cannot be {self.policy(kind)!r}: such a drift has nothing to adopt or close; "
                    "use record, alert or freeze"
                )
        return self

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if problem := next(self.timing.problems(), None):
            raise ValueError(problem)
        return self

    @property
    def timing(self) -> ReconcileTiming:
        """The times that depend on each other."""
        return ReconcileTiming.of(self)

    def policy(self, kind: str) -> DriftPolicy:
        """Return the policy for drifts of this kind."""
        found: DriftPolicy = getattr(self, f"policy_{kind}")
        return found


class ExchangeSettings(ExchangeAccountSettings, Settings):
    """Which exchange accounts to read: one by the flat settings, more by `EXCHANGE_ACCOUNTS`."""

    model_config = SettingsConfigDict(env_prefix="EXCHANGE_", extra="ignore")

    accounts: tuple[ExchangeAccountSettings, ...] = Field(
        (), description='More accounts, a JSON list of objects with the fields above: [{"id": "okx", ...}].'
    )

    instruments_refresh_seconds: int = Field(
        3600, ge=60, le=86_400, description="Time between loads of the market rules of every venue with an account."
    )

    @model_validator(mode="after")
    def _account_names_differ(self) -> Self:
        names = [(found.id, found.account) for found in self.every()]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ValueError(
                f"two accounts of {twice[0]} are called {twice[1]!r}; give each a name with its account field"
            )
        return self

    @model_validator(mode="after")
    def _accounts_differ(self) -> Self:
        known: dict[tuple[object, ...], ExchangeAccountSettings] = {}
        for found in self.every():
            identity = (found.id, tuple(sorted(found.given.items())), found.options.get_secret_value())
            other = known.setdefault((found.id, repr(identity)), found)
            if other is not found:
                raise ValueError(
                    f"{other.id}/{other.account} and {found.id}/{found.account} are one API key: what that account "
                    "shows would count in both. An account has one portfolio; tell its strategies apart by tags, with "
                    "a cap for each (caps set --scope strategy=a)"
                )
        return self

    def every(self) -> tuple[ExchangeAccountSettings, ...]:
        """Return all accounts with a credential: the flat one first, then those of `accounts`."""
        return tuple(found for found in (self.flat(), *self.accounts) if found.given)

    def flat(self) -> ExchangeAccountSettings:
        """Return the account of the flat settings, with or without credentials."""
        names = ExchangeAccountSettings.model_fields
        return ExchangeAccountSettings.model_construct(**{name: getattr(self, name) for name in names})


def _nothing_given() -> Any:
    """Return the form of a section of which only its own variables tell."""
    return {}


LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class AppSettings(Sections):
    """All settings. Reads `.env` and the environment; nested names use a double underscore (`LEDGER__DATABASE_URL`).

    An embedded ledger uses sizing, trading and ledger. A wrong value of any other setting raises where that setting is
    used, so that a bot's own variables stop no ledger. Programs read all by `of_program`, which refuses it at once.
    """

    model_config = SettingsConfigDict(env_nested_delimiter="__")
    later = ("service", "reconcile", "exchange")

    sizing: DynamicSizingSettings = Field(default_factory=DynamicSizingSettings)
    trading: TradingSettings = Field(default_factory=TradingSettings)
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    service: ServiceSettings = Field(default_factory=_nothing_given)
    reconcile: ReconcileSettings = Field(default_factory=_nothing_given)
    exchange: ExchangeSettings = Field(default_factory=_nothing_given)
    log_level: LogLevel = Field("INFO", description="Lowest level that programs write to their log.")

    @classmethod
    def of_program(cls) -> Self:
        """Read the settings of a program of this package. Raises `InvalidRequest` for whatever is wrong."""
        settings = cls()
        for name in cls.later:
            require_readable(getattr(settings, name))
        if settings.log_level not in get_args(LogLevel):
            levels = ", ".join(get_args(LogLevel))
            what = f"must be one of {levels}, got {settings.log_level!r:.100}"
            raise InvalidRequest(f"setting log_level (environment LOG_LEVEL): {what}", field="log_level")
        return settings

    @field_validator(*later, mode="wrap")
    @classmethod
    def _usable_or_later(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        kinds: dict[str, type[Settings]] = {
            "service": ServiceSettings, "reconcile": ReconcileSettings, "exchange": ExchangeSettings
        }  # fmt: skip
        name = str(info.field_name)
        return read_later(kinds[name], name, value, read)

    @field_validator("log_level", mode="wrap")
    @classmethod
    def _known_or_later(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        text = value.strip().upper() if isinstance(value, str) else value
        text = "WARNING" if text == "WARN" else text
        return read(text) if text in get_args(LogLevel) else value
