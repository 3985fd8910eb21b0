"""A small file system in memory that can be filled: what a full disk is to whoever writes on it."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from campaign.stage import Skipped

CHUNK_BYTES = 64 * 1024


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of this size at `folder` during a `with` block. Raises `Skipped` if that is not allowed."""
    if os.geteuid() != 0:
        raise Skipped("a small file system can be mounted by root only")
    folder.mkdir()
    options = f"size={megabytes}m,mode=755"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        raise Skipped(f"mount is not allowed here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Fill the file system of this folder to the last byte during a `with` block."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file:
            size = CHUNK_BYTES
            while size:
                try:
                    file.write(b"\0" * size)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    size //= 2
        yield
    finally:
        filler.unlink(missing_ok=True)
