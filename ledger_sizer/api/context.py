"""What all routes of one app share: `ServiceContext`, and the arguments that require a caller's role."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import Engine

from ledger_sizer.api.auth import Authenticator
from ledger_sizer.api.deadline import Deadline
from ledger_sizer.config import ServiceSettings
from ledger_sizer.ledger.ledger import Ledger
from ledger_sizer.model.choices import Role
from ledger_sizer.model.errors import WrongState
from ledger_sizer.reconcile.run import Reconciler
from ledger_sizer.service.api_keys import ApiKey
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


def _caller_with(role: Role) -> Callable[[Request], Awaitable[ApiKey]]:
    async def caller(request: Request) -> ApiKey:
        service: ServiceContext = request.app.state.service
        return await service.access.require(request.scope, role)

    return caller


Reader = Annotated[ApiKey, Depends(_caller_with("read"))]
"""Argument of a route: the caller's key, which may read."""
Trader = Annotated[ApiKey, Depends(_caller_with("trade"))]
Admin = Annotated[ApiKey, Depends(_caller_with("admin"))]
