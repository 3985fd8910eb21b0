"""Idempotency keys that are made from another one, for what follows from one request."""

from hashlib import sha256

from ledger_sizer.model.command_base import KEY_LENGTH_MAX

_DIGEST_LENGTH = 65
_PREFIX_MAX = 100


def derived_key(key: str, suffix: str) -> str:
    """Return key + suffix. A key that is too long for that is cut, and a digest of all of it added.

    suffix: at most 120 characters.
    """
    if len(key) + len(suffix) > KEY_LENGTH_MAX:
        room = min(_PREFIX_MAX, KEY_LENGTH_MAX - len(suffix) - _DIGEST_LENGTH)
        key = f"{key[:room]}~{sha256(key.encode()).hexdigest()}"
    return key + suffix
