"""Who sends a command: the actor that the decision names, and the client to which the command's key belongs."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.tags import NO_TAGS, Tags


class Caller(NamedTuple):
    """The sender of a command.

    actor: who it is, as the decision records it: `api:<key id>:<name>`, `local` (a service without API keys),
    `embedded:<client>`, `cli:<user>`, `reconcile`, or `ledger` for what the ledger itself decides.
    client: owner of its idempotency keys. The same key from another client is refused, never a replay.
    sees_all: whether it may look up other clients' keys, as an admin may.
    tags: those to which its API key is bound: it touches no other money (see `rules.guards`). Mostly none.
    """

    actor: str
    client: str
    sees_all: bool = False
    tags: Tags = NO_TAGS

    def owns(self, client: str | None) -> bool:
        """Whether a key that `client` used is the caller's own. Decisions of old versions (None) are everybody's."""
        return client is None or client == self.client


ACTOR_LENGTH_MAX = 300
"""Longest actor: its kind, an id and a name."""

DEFAULT_CLIENT = "embedded"
EMBEDDED = Caller(f"embedded:{DEFAULT_CLIENT}", DEFAULT_CLIENT)
"""A program that opened the ledger and named no client."""

SYSTEM = Caller("ledger", "ledger")
"""The ledger itself: it ends overdue holds."""

LOCAL = Caller("local", "local", sees_all=True)
"""Whoever asks a service that has no API keys."""

RECONCILE = Caller("reconcile", "reconcile")
"""The reconciliation. Its client also owns the keys of what it does for a person (see `reconcile_for`)."""

caller_var: ContextVar[Caller | None] = ContextVar("ledger_sizer_caller", default=None)
"""The caller of the request that is being served. Where it is None, the caller is the one who opened the ledger."""


def reconcile_for(actor: str) -> Caller:
    """Return the caller of what the reconciliation does because this actor decided it.

    Runs and persons share the reconciliation's keys, which name the drift and what is done: so each thing is done once,
    whoever comes first.
    """
    return RECONCILE._replace(actor=actor)


@contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """Make `caller` the caller of all commands of a `with` block."""
    token = caller_var.set(caller)
    try:
        yield
    finally:
        caller_var.reset(token)


def embedded_caller(client: str) -> Caller:
    """Return the caller of a program that opened the ledger as `client`. Raises `InvalidRequest`."""
    return Caller(f"embedded:{label_text(client, 'client')}", client)
