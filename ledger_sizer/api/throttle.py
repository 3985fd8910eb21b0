"""Tells clients apart by their address, and bounds failed logins: of one client and of all, in windows of a minute."""

import ipaddress
import time
from collections import Counter
from collections.abc import Callable

from ledger_sizer.wire.problems import TooManyRequests

CLIENT_FAILURES_MAX = 10
FAILURES_MAX = 100
WINDOW_SECONDS = 60


class LoginThrottle:
    """Counts failed logins. No key can be guessed (256 random bits); this bounds what the guessing costs the service.

    clock: seconds that only grow. Holds at most `FAILURES_MAX` clients.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = clock()
        self._failures: Counter[str] = Counter()

    def check(self, client: str) -> None:
        """Raise `TooManyRequests` while this client, or all together, have failed too often in this window."""
        now = self._clock()
        if now >= self._ends_at:
            self._ends_at = now + WINDOW_SECONDS
            self._failures.clear()
        if self._failures[client] >= CLIENT_FAILURES_MAX or self._failures.total() >= FAILURES_MAX:
            raise TooManyRequests("too many logins failed; try again later", retry_after=int(self._ends_at - now) + 1)

    def count_failure(self, client: str) -> None:
        """Count one failed login."""
        self._failures[client] += 1


def client_of(address: tuple[str, int] | None) -> str:
    """Return by what a client is counted: its address; of IPv6 the network, all of which one client may have."""
    if address is None:
        return ""
    host = ipaddress.ip_address(address[0])
    if host.version == 4 or host.ipv4_mapped is not None:
        return str(host if host.version == 4 else host.ipv4_mapped)
    return str(ipaddress.ip_network((int(host), 64), strict=False))
