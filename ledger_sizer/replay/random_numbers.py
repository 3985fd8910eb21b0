"""Reproducible random numbers: integers from a seed, equal on every platform and Python version.

`SeededRandom` is a sequence, for the generated market. `random_below` depends on its arguments alone, for what happens
to an order: the same order of the same bot has the same outcome in both portfolios, whatever else was drawn before.
"""

from hashlib import blake2b
from random import Random


def random_below(below: int, *parts: object) -> int:
    """A whole number in [0, below), made from `parts` and nothing else."""
    digest = blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * below >> 64


class SeededRandom:
    """A seeded sequence of whole numbers. Python guarantees `random()` for a seed for ever, so only that is used."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)

    def below(self, count: int) -> int:
        """A whole number in [0, count)."""
        return int(self._random.random() * (1 << 53)) * count >> 53

    def bell(self, deviation: int) -> int:
        """A whole number around 0, close to normal with this standard deviation (twelve uniform draws, summed)."""
        return (sum(self.below(2001) for _ in range(12)) - 12_000) * deviation // 2_000
