"""Loads the style sheet, the script and the icon. Their URLs carry a digest, so that browsers cache them for good."""

from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

_MEDIA_TYPES = {"desk.css": "text/css", "desk.js": "text/javascript", "icon.svg": "image/svg+xml"}


@dataclass(frozen=True, slots=True)
class Asset:
    """One static file. name: the last part of its URL, with the digest of its content."""

    name: str
    media_type: str
    content: bytes


def _load() -> dict[str, Asset]:
    folder = files("ledger_sizer.dashboard") / "static"
    assets = {}
    for name, media_type in _MEDIA_TYPES.items():
        content = (folder / name).read_bytes()
        stem, _, ending = name.rpartition(".")
        assets[name] = Asset(f"{stem}-{sha256(content).hexdigest()[:12]}.{ending}", media_type, content)
    return assets


ASSETS = _load()
"""By plain name."""

BY_DIGEST_NAME = {asset.name: asset for asset in ASSETS.values()}
"""By the name in their URL."""


def asset_url(name: str) -> str:
    """Return the URL of a file."""
    return f"/assets/{ASSETS[name].name}"
