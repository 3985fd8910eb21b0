"""API keys of the service: created, listed, revoked and checked. A key is shown once and stored as a hash.

A token is `lsk_<key id>_<secret>` with a secret of 256 random bits. Only the SHA-256 of the whole token is stored. A
slow password hash would cost time at every request and protect nothing: no dictionary attack works against that many
random bits (docs/decisions/0008).
"""

import hmac
import json
import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from sqlalchemy import Connection, Engine, case, func, insert, select, update

from ledger_sizer.model.arguments import label_text
from ledger_sizer.model.caller import LOCAL, Caller
from ledger_sizer.model.choices import ROLES, Role
from ledger_sizer.model.errors import InvalidRequest, NotFound
from ledger_sizer.model.names import portfolio_name
from ledger_sizer.model.tags import EXTERNAL_TAG, NO_TAGS, GivenTags, Tags, stored_tags, tags_of
from ledger_sizer.model.times import from_us
from ledger_sizer.storage.database import database_now_us, read_transaction, write_transaction
from ledger_sizer.storage.tables import ApiKeyRow

KEYS_MAX = 10_000
_TOKEN = re.compile(r"lsk_([0-9a-f]{12})_[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key without its secret. portfolios: the only ones it may touch; None means all.

    client: the name of the client that its idempotency keys belong to; None: the key itself is the client. API keys of
    one client share idempotency keys, so that a bot may get a new API key. tags: those to which it is bound: what it
    reserves and adopts gets them, and it touches no other money (see `rules.guards`); none for a key that is not bound.
    """

    key_id: str
    name: str
    role: Role
    portfolios: tuple[str, ...] | None
    created_at: datetime
    revoked_at: datetime | None
    client: str | None = None
    tags: Tags = NO_TAGS

    @property
    def caller(self) -> Caller:
        """Who sends a command with this key. One that only reads has no commands of its own: it sees those of all."""
        if not self.key_id:
            return LOCAL
        return Caller(f"api:{self.key_id}:{self.name}", self.client or self.key_id, self.role != "trade", self.tags)

    def may(self, role: Role) -> bool:
        """Whether its role covers `role`."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def may_touch(self, portfolio: str) -> bool:
        """Whether the key may be used for `portfolio`."""
        return self.portfolios is None or portfolio in self.portfolios


@dataclass(frozen=True, slots=True)
class NewKey:
    """A new key. `token` cannot be shown again later."""

    key: ApiKey
    token: str

    def __repr__(self) -> str:
        return f"NewKey(key={self.key!r}, token='...')"


Record = Callable[["ApiKey", str], None]
"""Records what happens to a key (see `desk_records.key_recorder`): called with the key and `created` or `revoked`."""


def create_key(
    engine: Engine,
    name: str,
    role: str,
    portfolios: Sequence[str] = (),
    client: str | None = None,
    *,
    tags: GivenTags = NO_TAGS,
    record: Record | None = None,
) -> NewKey:
    """Create a key. portfolios: the only ones it may touch, none for all. client, tags: see `ApiKey`.

    record: called before the key exists, so that no key is made unrecorded.
    Raises `InvalidRequest` for an unknown role or an invalid name, and beyond `KEYS_MAX` keys.
    """
    label_text(name, "name")
    if client is not None:
        client = label_text(client, "client")
    if role not in ROLES:
        raise InvalidRequest(f"role must be one of {', '.join(ROLES)}, got {role!r}", field="role")
    bound = tuple(dict.fromkeys(portfolio_name(portfolio) for portfolio in portfolios)) or None
    bound_to = tags_of(tags) or NO_TAGS
    if EXTERNAL_TAG in bound_to:
        raise InvalidRequest(
            f"the tag {EXTERNAL_TAG!r} is the reconciliation's own; bind the key to a tag of its bot", field="tags"
        )
    key_id = secrets.token_hex(6)
    token = f"lsk_{key_id}_{secrets.token_hex(32)}"
    row = insert(ApiKeyRow).values(
        key_id=key_id,
        name=name,
        role=role,
        portfolios=None if bound is None else json.dumps(bound),
        token_hash=_hash(token),
        created_us=database_now_us(),
        client=client,
        tags=bound_to.text if bound_to else None,
    )
    if record is not None:
        with read_transaction(engine) as connection:
            _require_room(connection)
        record(ApiKey(key_id, name, role, bound, datetime.now(UTC), None, client, bound_to), "created")
    with write_transaction(engine, "create an API key") as connection:
        _require_room(connection)
        connection.execute(row)
    return NewKey(_find(engine, key_id), token)


def _require_room(connection: Connection) -> None:
    if (connection.execute(select(func.count()).select_from(ApiKeyRow)).scalar() or 0) >= KEYS_MAX:
        raise InvalidRequest(f"there are {KEYS_MAX} API keys already, the most a service keeps")


def list_keys(engine: Engine) -> list[ApiKey]:
    """All keys, oldest first, revoked ones too."""
    return [key for key, _ in _load(engine)]


def revoke_key(engine: Engine, key_id: str, *, record: Record | None = None) -> ApiKey:
    """Revoke a key for good; revoking twice is harmless. Running services refuse it after at most their cache time.

    record: called before, so that no key is revoked unrecorded. Raises `NotFound`.
    """
    key = _find(engine, key_id)
    if key.revoked_at is not None:
        return key
    if record is not None:
        record(key, "revoked")
    now_us = database_now_us()
    # A clock that was set back must not make a revocation fail.
    revoked_us = case((ApiKeyRow.created_us > now_us, ApiKeyRow.created_us), else_=now_us)
    active = (ApiKeyRow.key_id == key_id) & ApiKeyRow.revoked_us.is_(None)
    with write_transaction(engine, "revoke an API key") as connection:
        connection.execute(update(ApiKeyRow).where(active).values(revoked_us=revoked_us))
    return _find(engine, key_id)


class KeyRing:
    """Cache of all keys in a running service; stale after `cache_seconds`.

    At most one query per `cache_seconds`, so that a flood of wrong tokens puts no load on the database.
    """

    def __init__(self, engine: Engine, cache_seconds: float) -> None:
        self._engine = engine
        self._cache_seconds = cache_seconds
        self._keys: dict[str, tuple[ApiKey, str]] = {}
        self._read_at: float | None = None

    @property
    def fresh(self) -> bool:
        """Whether the cache is at most `cache_seconds` old."""
        return self._read_at is not None and time.monotonic() - self._read_at <= self._cache_seconds

    @property
    def empty(self) -> bool:
        """Whether no key was ever created. Revoked keys count: revoking the last one must not admit everybody."""
        return not self._keys

    def refresh(self) -> None:
        """Read the keys. Raises `Unavailable` when the database cannot be reached."""
        started = time.monotonic()
        self._keys = {key.key_id: (key, token_hash) for key, token_hash in _load(self._engine)}
        self._read_at = started

    def find(self, token: str) -> ApiKey | None:
        """Return the key of a token; None if it is unknown or revoked."""
        match = _TOKEN.fullmatch(token)
        key, token_hash = self._keys.get(match[1], _NO_KEY) if match else _NO_KEY
        matches = hmac.compare_digest(_hash(token), token_hash)
        return key if matches and key is not None and key.revoked_at is None else None


_NO_KEY: tuple[ApiKey | None, str] = (None, "0" * 64)


def _hash(token: str) -> str:
    return sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _find(engine: Engine, key_id: str) -> ApiKey:
    found = next((key for key in list_keys(engine) if key.key_id == key_id), None)
    if found is None:
        raise NotFound(f"no API key {key_id!r}; see: ledger-sizer keys list")
    return found


def _load(engine: Engine) -> list[tuple[ApiKey, str]]:
    query = select(ApiKeyRow.__table__).order_by(ApiKeyRow.created_us, ApiKeyRow.key_id).limit(KEYS_MAX)
    with read_transaction(engine, "read the API keys") as connection:
        return [(_key_of_row(row), row.token_hash) for row in connection.execute(query)]


def _key_of_row(row: Any) -> ApiKey:
    return ApiKey(
        key_id=row.key_id,
        name=row.name,
        role=row.role,
        portfolios=None if row.portfolios is None else tuple(json.loads(row.portfolios)),
        created_at=from_us(row.created_us),
        revoked_at=None if row.revoked_us is None else from_us(row.revoked_us),
        client=row.client,
        tags=NO_TAGS if row.tags is None else stored_tags(row.tags),
    )
