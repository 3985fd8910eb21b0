"""What the routes of one app share."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import Engine

from ledger_sizer.api.access import Access
from ledger_sizer.config import ServiceSettings
from ledger_sizer.ledger import Ledger
from ledger_sizer.metrics import Metrics
from ledger_sizer.reconcile.run import Reconciler


@dataclass(slots=True)
class Service:
    """The running parts as the routes see them. `stopping`: set when no new work should begin."""

    ledger: Ledger
    reads: Engine
    settings: ServiceSettings
    access: Access
    metrics: Metrics
    reconciler: Reconciler | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
