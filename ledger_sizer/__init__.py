"""A durable ledger of exposure for trading bots, with atomic, expiring reservations under caps.

Stores in SQLite or PostgreSQL. Sizes delta-neutral positions from a signal score. Keeps every decision in a hash chain
that can prove afterwards why each answer was given.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ledger_sizer.config import AppSettings as AppSettings
    from ledger_sizer.config import DynamicSizingSettings as DynamicSizingSettings
    from ledger_sizer.config import ExchangeSettings as ExchangeSettings
    from ledger_sizer.config import LedgerSettings as LedgerSettings
    from ledger_sizer.config import ReconcileSettings as ReconcileSettings
    from ledger_sizer.config import ServiceSettings as ServiceSettings
    from ledger_sizer.config import TradingSettings as TradingSettings
    from ledger_sizer.ledger.ledger import Ledger as Ledger
    from ledger_sizer.model.commands import *  # noqa: F403 - a new command is public by its declaration
    from ledger_sizer.model.decisions import Decision as Decision
    from ledger_sizer.model.domain import Exposure as Exposure
    from ledger_sizer.model.domain import ExposurePage as ExposurePage
    from ledger_sizer.model.domain import Page as Page
    from ledger_sizer.model.domain import Position as Position
    from ledger_sizer.model.domain import ScopeExposure as ScopeExposure
    from ledger_sizer.model.errors import Busy as Busy
    from ledger_sizer.model.errors import Closed as Closed
    from ledger_sizer.model.errors import Denied as Denied
    from ledger_sizer.model.errors import Forbidden as Forbidden
    from ledger_sizer.model.errors import InternalError as InternalError
    from ledger_sizer.model.errors import InvalidRequest as InvalidRequest
    from ledger_sizer.model.errors import KeyReused as KeyReused
    from ledger_sizer.model.errors import LedgerError as LedgerError
    from ledger_sizer.model.errors import NotFound as NotFound
    from ledger_sizer.model.errors import SchemaOutdated as SchemaOutdated
    from ledger_sizer.model.errors import Unavailable as Unavailable
    from ledger_sizer.model.errors import WrongState as WrongState
    from ledger_sizer.model.instruments import InstrumentInfo as InstrumentInfo
    from ledger_sizer.model.legs import Leg as Leg
    from ledger_sizer.model.legs import LegPlan as LegPlan
    from ledger_sizer.model.legs import OrderLeg as OrderLeg
    from ledger_sizer.model.pools import DefaultCap as DefaultCap
    from ledger_sizer.model.pools import Pool as Pool
    from ledger_sizer.model.verification import Finding as Finding
    from ledger_sizer.model.verification import VerifyReport as VerifyReport
    from ledger_sizer.rules.explain import Explanation as Explanation
    from ledger_sizer.rules.sizing import DynamicSizer as DynamicSizer
    from ledger_sizer.rules.sizing import PositionSizer as PositionSizer
    from ledger_sizer.rules.sizing import Sizing as Sizing
    from ledger_sizer.rules.sizing import round_to_step as round_to_step

_EXPORTS = {
    "config": "AppSettings DynamicSizingSettings ExchangeSettings LedgerSettings ReconcileSettings ServiceSettings "
    "TradingSettings",
    "rules.explain": "Explanation",
    "model.decisions": "Decision",
    "model.domain": "Exposure ExposurePage Page Position ScopeExposure",
    "model.verification": "Finding VerifyReport",
    "model.errors": "Busy Closed Denied Forbidden InternalError InvalidRequest KeyReused LedgerError NotFound "
    "SchemaOutdated Unavailable WrongState",
    "model.instruments": "InstrumentInfo",
    "model.legs": "Leg LegPlan OrderLeg",
    "model.pools": "DefaultCap Pool",
    "ledger.ledger": "Ledger",
    "rules.sizing": "DynamicSizer PositionSizer Sizing round_to_step",
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names.split()}


def _commands() -> dict[str, Any]:
    """Return every command type by name. It imports them, so it is called only where another table does not help."""
    from ledger_sizer.model.commands import COMMANDS

    return {command.__name__: command for command in COMMANDS.values()}


def __getattr__(name: str) -> Any:
    """Import a public name from its module when it is first used, so that `import ledger_sizer` is fast."""
    value: Any
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    elif name == "__all__":
        value = sorted({*_MODULE_OF, *_commands()})
    elif name.startswith("_") or (value := _commands().get(name)) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULE_OF, *_commands()})
