"""Reads the block `ledger_sizer` of a freqtrade configuration."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.errors import InvalidRequest

USD_COINS = ("USD", "USDT", "USDC", "USDE", "USDS", "FDUSD", "TUSD", "BUSD", "DAI", "PYUSD")
"""Stake currencies that count as USD unless the configuration names others."""

DRY_RUN_SUFFIX = "-dry-run"
"""Added to the bot's name in a dry run: its book is not the live bot's."""


@dataclass(frozen=True, slots=True)
class DeskSettings:
    """How a bot asks the ledger. url: of the service (`http://...`), or of a database that this process opens itself.

    bot: names this bot, in the tag `bot`; no two bots that run at once may have the same. tags: further tags of its
    positions; `venue` is the exchange unless one is given. portfolio: the pot it spends from. patience_seconds: longest
    wait for one answer. repeat_seconds: how long a denial answers the same wish again. slippage: part of a market
    order's value that is held beyond its price. usd_coins: stake currencies that are worth a USD.
    """

    required: ClassVar[tuple[str, ...]] = ("url", "bot")

    url: str
    bot: str
    api_key: str | None = field(default=None, repr=False)
    portfolio: str = "main"
    tags: Mapping[str, Any] = field(default_factory=dict)
    patience_seconds: float = 1.0
    repeat_seconds: float = 60.0
    slippage: float = 0.01
    usd_coins: tuple[str, ...] = USD_COINS

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "DeskSettings":
        """Return the settings of a whole freqtrade configuration. Raises `InvalidRequest` for the first wrong one."""
        block = config.get("ledger_sizer")
        if not isinstance(block, Mapping):
            raise InvalidRequest(
                'the configuration lacks "ledger_sizer": {"url": "http://127.0.0.1:8321", "bot": "a"}',
                field="ledger_sizer",
            )
        known = cls.__dataclass_fields__
        for name in block:
            if name not in known:
                raise _wrong(name, f"is unknown; there are {', '.join(sorted(known))}")
        for name in cls.required:
            if not block.get(name):
                raise _wrong(name, "is missing")
        settings = cls(**{**block, **({"usd_coins": tuple(block["usd_coins"])} if "usd_coins" in block else {})})
        settings._require_valid(str(config.get("stake_currency")))
        return settings

    def tags_of(self, venue: str, *, dry_run: bool) -> dict[str, Any]:
        """Return the tags of this bot's positions. venue: the exchange's id."""
        bot = self.bot + (DRY_RUN_SUFFIX if dry_run else "")
        return {"venue": venue, **self.tags, "bot": bot}

    @property
    def shown_url(self) -> str:
        """The URL without a user and a password, for the log."""
        return re.sub(r"//[^/]*@", "//", self.url)

    def _require_valid(self, stake_currency: str) -> None:
        label_text(self.bot, "ledger_sizer.bot")
        for name in ("url", "portfolio", "api_key"):
            value = getattr(self, name)
            if not isinstance(value, str) and not (name == "api_key" and value is None):
                raise _wrong(name, f"must be text, got {value!r:.100}")
        tags: Any = self.tags
        if not isinstance(tags, Mapping) or "bot" in tags:
            raise _wrong("tags", f"must be an object such as {{'strategy': 'trend'}}, without bot, got {tags!r}")
        for name, least, most in (("patience_seconds", 0.05, 60), ("repeat_seconds", 0, 86_400), ("slippage", 0, 0.5)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
                raise _wrong(name, f"must be a number from {least} to {most}, got {value!r}")
        if stake_currency not in self.usd_coins:
            raise _wrong(
                "usd_coins", f"lacks the stake currency {stake_currency!r}; the ledger counts USD: stake one of these"
            )


def _wrong(name: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"ledger_sizer.{name} {what}", field=f"ledger_sizer.{name}")
