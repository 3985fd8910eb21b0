"""Generates reproducible random integers, equal on every platform and Python version.

`SeededRandom` is a sequence, used by the synthetic market. `random_below` depends on its arguments alone, not on
earlier draws, so an order has the same outcome in both portfolios.
"""

from hashlib import blake2b
from random import Random


def random_below(below: int, *parts: object) -> int:
    """Return an integer in [0, below), a hash of `parts`."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * below >> 64


class SeededRandom:
    """A seeded sequence of integers. Uses only `Random.random()`, whose values per seed Python guarantees for ever."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def below(self, count: int) -> int:
        """Draw an integer in [0, count)."""
        return int(self._random.random() * (1 << 53)) * count >> 53

    def normal(self, deviation: int) -> int:
        """Draw an integer, nearly normal with mean 0 and this standard deviation (sum of twelve uniform draws)."""
        return (sum(self.below(2001) for _ in range(12)) - 12_000) * deviation // 2_000
