"""What the sample number decides: the subject, which of its photographs, and which prior sample."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

from ldm.randomness import permutation

MAX_DENOMINATOR = 100
"""Weights count in steps of a hundredth of the smallest, which keeps a round of samples short."""


def shuffled_index(seed: int, purpose: str, n: int, count: int) -> int:
    """Which of `count` items sample number `n` takes: every pass holds each item once, in a new order."""
    epoch, place = divmod(n, count)
    return int(permutation(count, seed, purpose, epoch)[place])


@dataclass(frozen=True)
class PriorOrder:
    """Which of `count` prior samples accompanies a class's n-th sample: in order at first, then in shuffled passes."""

    seed: int
    count: int

    def __call__(self, n: int) -> int:
        return n if n < self.count else shuffled_index(self.seed, "prior order", n, self.count)


@dataclass(frozen=True)
class ConceptOrder:
    """Which subject sample number n is of: rounds hold each as often as its weight says, in a shuffled order."""

    seed: int
    shares: tuple[int, ...]
    """Samples of each subject in a round."""

    @classmethod
    def of_weights(cls, seed: int, weights: Sequence[float]) -> "ConceptOrder":
        """The shortest rounds for `weights`, all above 0, to the nearest hundredth of the smallest."""
        parts = [Fraction(w / min(weights)).limit_denominator(MAX_DENOMINATOR) for w in weights]
        length = lcm(*(part.denominator for part in parts))
        return cls(seed, tuple(int(part * length) for part in parts))

    def __call__(self, n: int) -> int:
        """The place in the list of the subject that sample `n` is of."""
        return self._round(n)[n % sum(self.shares)]

    def number_among(self, n: int, concepts: Collection[int]) -> int:
        """How many of the samples before `n` are of one of `concepts`."""
        rounds, place = divmod(n, sum(self.shares))
        before = sum(concept in concepts for concept in self._round(n)[:place])
        return rounds * sum(self.shares[concept] for concept in concepts) + before

    def _round(self, n: int) -> tuple[int, ...]:
        return _arranged(self.seed, self.shares, n // sum(self.shares))


@lru_cache(maxsize=64)
def _arranged(seed: int, shares: tuple[int, ...], number: int) -> tuple[int, ...]:
    """The subjects of round `number`, in order."""
    places = [concept for concept, share in enumerate(shares) for _ in range(share)]
    return tuple(places[i] for i in permutation(len(places), seed, "concept order", number).tolist())
