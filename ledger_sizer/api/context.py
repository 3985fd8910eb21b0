"""`ServiceContext`: what all routes of one app share."""

import asyncio
from dataclasses import dataclass, field

from sqlalchemy import Engine

from ledger_sizer.api.auth import Authenticator
from ledger_sizer.api.deadline import Deadline
from ledger_sizer.config import ServiceSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.errors import WrongState
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.service.metrics import Metrics
from ledger_sizer.service.tracing import Tracing


@dataclass(slots=True)
class ServiceContext:
    """The running parts that the routes use.

    reads: a read-only engine. deadline: timeout for the ledger's answers. tracing: None unless enabled.
    reconciler: None where drifts and runs can only be read. stopping: set when no new work may begin.
    """

    ledger: Ledger
    reads: Engine
    settings: ServiceSettings
    access: Authenticator
    metrics: Metrics
    deadline: Deadline
    tracing: Tracing | None = None
    reconciler: Reconciler | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    def require_reconciler(self) -> Reconciler:
        """Return the reconciler. Raises `WrongState` where the service has none."""
        if self.reconciler is None:
            raise WrongState("this service does not reconcile")
        return self.reconciler
