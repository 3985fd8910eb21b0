"""Policies of assets that persons decided: stored and read. Those of the settings stand beside them."""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Engine, delete, insert, select, update

from ledger_sizer.config import ReconcileSettings
from ledger_sizer.model.asset_policies import AssetPolicies, AssetRule
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.storage.database import read_transaction, write_transaction
from ledger_sizer.storage.tables import AssetPolicyRow

_TABLE = AssetPolicyRow.__table__


def _rule_from_row(row: Any) -> AssetRule:
    return AssetRule(**row._mapping, source="decided")


def read_decided(engine: Engine, portfolios: Sequence[str] | None = None) -> list[AssetRule]:
    """Return the policies that were decided for these portfolios (None: for all), ordered by portfolio and pattern."""
    query = select(_TABLE).order_by(AssetPolicyRow.portfolio, AssetPolicyRow.pattern)
    if portfolios is not None:
        query = query.where(AssetPolicyRow.portfolio.in_(portfolios))
    with read_transaction(engine) as connection:
        return [_rule_from_row(row) for row in connection.execute(query)]


def get_decided(engine: Engine, policy_id: object) -> AssetRule:
    """Return one decided policy. Raises `NotFound`."""
    if isinstance(policy_id, bool) or not isinstance(policy_id, int) or not 1 <= policy_id < 2**63:
        raise InvalidRequest(f"a decided policy has a number from 1, got {policy_id!r}", field="policy_id")
    with read_transaction(engine) as connection:
        row = connection.execute(select(_TABLE).where(AssetPolicyRow.id == policy_id)).one_or_none()
    if row is None:
        raise NotFound(f"no decided policy {policy_id}; list them with: ledger-sizer drifts policies")
    return _rule_from_row(row)


def store_decided(engine: Engine, rule: AssetRule) -> None:
    """Store a decided policy, in place of one for the same pattern."""
    values = {
        "policy": rule.policy, "actor": rule.actor, "reason": rule.reason, "decided_us": rule.decided_us
    }  # fmt: skip
    same = (AssetPolicyRow.portfolio == rule.portfolio) & (AssetPolicyRow.pattern == rule.pattern)
    with write_transaction(engine, "store the policy") as connection:
        if connection.execute(update(AssetPolicyRow).where(same).values(**values)).rowcount == 0:
            identity = {"portfolio": rule.portfolio, "pattern": rule.pattern}
            connection.execute(insert(AssetPolicyRow).values(**identity, **values))


def remove_decided(engine: Engine, rule: AssetRule) -> None:
    """Remove a decided policy, unless another decision took its place meanwhile."""
    same = (AssetPolicyRow.id == rule.id) & (AssetPolicyRow.decided_us == rule.decided_us)
    with write_transaction(engine, "remove the policy") as connection:
        connection.execute(delete(AssetPolicyRow).where(same))


def effective_policies(settings: ReconcileSettings, decided: Iterable[AssetRule] = ()) -> AssetPolicies:
    """Return the policies that hold: those decided, else those of the settings."""
    return AssetPolicies(settings.assets, decided, settings.quote_assets)
