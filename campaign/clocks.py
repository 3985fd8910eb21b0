"""A clock that can be turned, for processes that are started with it: Debian's libfaketime."""

from __future__ import annotations

import subprocess
from pathlib import Path

from campaign.stage import Skipped

LIBRARY = "libfaketime.so.1"
DOWNLOAD_SECONDS_MAX = 60


class TurnableClock:
    """The wall clock of the processes that get its `environment`. Their monotonic clock is not touched."""

    def __init__(self, folder: Path) -> None:
        self._library = _installed() or _downloaded(folder)
        self._file = folder / "clock"
        self.turn(0)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a process that reads this clock."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def turn(self, seconds: int) -> None:
        """Set the clock so many seconds ahead of the right time; negative: behind it; 0: right."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.chmod(0o644)
        new.replace(self._file)


def _installed() -> Path | None:
    return next(iter(sorted(Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"))), None)


def _downloaded(folder: Path) -> Path:
    """Take the library out of Debian's package, without installing it. Raises `Skipped` where it cannot be had."""
    place = folder / "faketime"
    place.mkdir(exist_ok=True)
    place.chmod(0o777)  # apt downloads as a user of its own
    try:
        subprocess.run(
            ["apt-get", "download", "--quiet", "libfaketime"], cwd=place, check=True, capture_output=True,
            timeout=DOWNLOAD_SECONDS_MAX,
        )  # fmt: skip
        (package,) = place.glob("libfaketime_*.deb")
        subprocess.run(["dpkg-deb", "-x", str(package), str(place)], check=True, capture_output=True)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise Skipped(f"libfaketime is neither installed nor to be had from Debian: {type(error).__name__}") from error
    place.chmod(0o755)
    return next(iter(place.rglob(LIBRARY)))
