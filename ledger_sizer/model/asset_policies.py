"""Whose money a spot balance is: policies by patterns such as `binance/*/LD*`, from settings and from decisions."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, get_args

from ledger_sizer.model.choices import ASSET_POLICIES, AssetPolicy
from ledger_sizer.model.errors import InvalidRequest
from ledger_sizer.model.times import from_us

DOLLARS = ("BUSD", "DAI", "FDUSD", "TUSD", "USD", "USD1", "USDC", "USDE", "USDT")
"""Currencies that count as dollars: in the quote of a market, and as money of an account."""

NAME_LENGTH_MAX = 200
_PARTS = 3
_PART = re.compile(r"[^\s/\x00-\x1f\x7f-\x9f]+")

Source = Literal["decided", "settings", "default"]


@dataclass(frozen=True, slots=True)
class AssetRule:
    """The policy of the assets that a pattern names.

    pattern: `venue/account/ASSET`, in which `*` stands for any text. source: `decided` about a drift, from `settings`,
    or the `default` of dollars. id, portfolio, actor, reason, decided_us: of a decided one.
    """

    pattern: str
    policy: AssetPolicy
    source: Source = "settings"
    id: int | None = None
    portfolio: str | None = None
    actor: str | None = None
    reason: str | None = None
    decided_us: int | None = None

    @property
    def decided_at(self) -> datetime | None:
        """When it was decided; None for one from settings."""
        return None if self.decided_us is None else from_us(self.decided_us)


def asset_patterns(given: dict[str, Any]) -> dict[str, Any]:
    """Return `given` if its keys are patterns of assets, else raise `InvalidRequest`."""
    for pattern in given:
        if not _has_three_parts(pattern):
            raise InvalidRequest(
                "a pattern is venue/account/ASSET, in which * stands for any text, such as binance/*/LD* or */*/BNB; "
                f"got {pattern!r}"
            )
    return given


def asset_names(given: dict[str, Any]) -> dict[str, Any]:
    """Return `given` if each of its keys names one asset of one account, else raise `InvalidRequest`."""
    for name in given:
        if "*" in name or not _has_three_parts(name):
            raise InvalidRequest(f"an asset of an account is venue/account/ASSET, such as bybit/main/BTC; got {name!r}")
    return given


def _has_three_parts(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == _PARTS and len(name) <= NAME_LENGTH_MAX and all(map(_PART.fullmatch, parts))


def asset_policy(policy: object, field: str) -> AssetPolicy:
    """Return `policy` if it is one, else raise `InvalidRequest`."""
    for known in ASSET_POLICIES:
        if policy == known:
            return known
    raise InvalidRequest(f"{field} must be one of {', '.join(ASSET_POLICIES)}, got {policy!r}", field=field)


class AssetPolicies:
    """Finds the policy of an asset: of all patterns that fit, the most specific one's; `position` where none fits.

    A name without `*` is more specific than one with, and of these the longer one. The asset's name is compared first,
    then the account's, then the venue's. decided: these win over any from `settings`, and those over `dollars`: assets
    that are `cash` unless a pattern says otherwise that names them as exactly. Each asset is searched once.
    """

    def __init__(
        self,
        settings: Mapping[str, AssetPolicy] | None = None,
        decided: Iterable[AssetRule] = (),
        dollars: Iterable[str] = DOLLARS,
    ) -> None:
        own = dict(settings or {})
        defaults = {f"*/*/{asset}": AssetRule(f"*/*/{asset}", "cash", "default") for asset in dollars}
        of_settings = defaults | {pattern: AssetRule(pattern, policy) for pattern, policy in own.items()}
        self._tables = [_Table(decided), _Table(of_settings.values())]
        self._found: dict[tuple[str, str, str], AssetRule | None] = {}

    def __iter__(self) -> Iterator[AssetRule]:
        """Yield every rule: decided, from settings, by default, and of each source the most specific first."""
        for source in get_args(Source):
            yield from (rule for table in self._tables for rule in table.rules if rule.source == source)

    def rule(self, venue: str, account: str, asset: str) -> AssetRule | None:
        """Return the rule of an asset, named as the exchange names it; None where none fits."""
        key = (venue, account, asset)
        if key not in self._found:
            name = "/".join(key)
            self._found[key] = next((found for table in self._tables if (found := table.find(name))), None)
        return self._found[key]

    def policy(self, venue: str, account: str, asset: str) -> AssetPolicy:
        """Return the policy of an asset."""
        found = self.rule(venue, account, asset)
        return "position" if found is None else found.policy

    def is_dollar(self, venue: str, account: str, asset: str) -> bool:
        """Whether an asset is money of which one unit is one USD."""
        found = self.rule(venue, account, asset)
        return found is not None and found.policy == "cash" and (found.source == "default" or asset in DOLLARS)


class _Table:
    """Rules of one source. Names without `*` are looked up, the others tried in order."""

    def __init__(self, rules: Iterable[AssetRule]) -> None:
        self.rules = sorted(rules, key=lambda one: (_specificity(one.pattern), one.pattern), reverse=True)
        self._exact = {rule.pattern: rule for rule in self.rules if "*" not in rule.pattern}
        self._wild = [(_regex(rule.pattern), rule) for rule in self.rules if "*" in rule.pattern]

    def find(self, name: str) -> AssetRule | None:
        if name in self._exact:
            return self._exact[name]
        return next((rule for regex, rule in self._wild if regex.fullmatch(name)), None)


def _specificity(pattern: str) -> tuple[tuple[bool, int], ...]:
    venue, account, asset = pattern.split("/")
    return tuple(("*" not in part, len(part.replace("*", ""))) for part in (asset, account, venue))


def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile("[^/]*".join(map(re.escape, pattern.split("*"))))
