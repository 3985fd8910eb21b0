"""The scene of an attack: a ledger for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.edited_ledgers import Scene


@pytest.fixture
def scene(database_url: str) -> Iterator[Scene]:
    """A ledger for this test alone, with the database's triggers removed."""
    scene = Scene(database_url)
    yield scene
    scene.close()
