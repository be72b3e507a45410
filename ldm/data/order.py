"""The order of samples: the sample number decides the subject, its photograph, and the prior sample."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from ldm.randomness import permutation

LONGEST_MULTIPLE = 100
"""Maximum number of samples of the smallest weight in a round."""

CLOSE = 0.005
"""Maximum relative difference between a share and its weight."""


def shuffled_index(seed: int, purpose: str, n: int, count: int) -> int:
    """The item, of `count`, of sample number `n`: every pass has each item once, in a new order."""
    epoch, place = divmod(n, count)
    return int(permutation(count, seed, purpose, epoch)[place])


@dataclass(frozen=True)
class PriorOrder:
    """The prior sample, of `count`, paired with a class's n-th sample: first in order, then in shuffled passes."""

    seed: int
    count: int

    def __call__(self, n: int) -> int:
        return n if n < self.count else shuffled_index(self.seed, "prior order", n, self.count)


@dataclass(frozen=True)
class Rounds:
    """The kind of number n: every round has each kind as often as its weight says, in shuffled order."""

    seed: int
    shares: tuple[int, ...]
    """How often each kind occurs in a round."""
    purpose: str = "concept order"

    @classmethod
    def of_weights(cls, seed: int, weights: Sequence[float], purpose: str = "concept order") -> "Rounds":
        """The shortest rounds whose shares match `weights`, all above 0."""
        parts = [weight / min(weights) for weight in weights]
        for times in range(1, LONGEST_MULTIPLE + 1):
            shares = tuple(round(part * times) for part in parts)
            if all(abs(s / times - part) <= CLOSE * part for s, part in zip(shares, parts, strict=True)):
                break
        return cls(seed, shares, purpose)

    def __call__(self, n: int) -> int:
        """The kind of number `n`."""
        return self._round(n)[n % sum(self.shares)]

    def number_among(self, n: int, kinds: Collection[int]) -> int:
        """How many numbers before `n` are of one of `kinds`."""
        rounds, place = divmod(n, sum(self.shares))
        before = sum(kind in kinds for kind in self._round(n)[:place])
        return rounds * sum(self.shares[kind] for kind in kinds) + before

    def _round(self, n: int) -> tuple[int, ...]:
        return _arranged(self.seed, self.purpose, self.shares, n // sum(self.shares))


@lru_cache(maxsize=64)
def _arranged(seed: int, purpose: str, shares: tuple[int, ...], number: int) -> tuple[int, ...]:
    """The kinds of round `number`, in order."""
    kinds = [kind for kind, share in enumerate(shares) for _ in range(share)]
    return tuple(kinds[i] for i in permutation(len(kinds), seed, purpose, number).tolist())


@dataclass(frozen=True)
class SampleOrder:
    """The shape and the subject of sample number n.

    All samples of an optimizer step have the same shape, and so do those of any micro-batch on any process. A shape is
    as frequent as the photographs that have it, and its subjects as their weights say.
    """

    shapes: Rounds
    subjects: tuple[Rounds, ...]
    """For each shape, the order of its subjects."""
    present: tuple[tuple[int, ...], ...]
    """For each shape, the indices in the config's list of the subjects numbered by `subjects`."""
    step: int = 1
    """Samples per optimizer step; with a single shape, any number."""

    @classmethod
    def of(cls, seed: int, weights: Sequence[float], counts: Sequence[Sequence[int]]) -> "SampleOrder":
        """weights: of the subjects. counts: [subject][shape], a subject's number of photographs of a shape."""
        parts = [
            [weight * count / sum(own) for count in own] for weight, own in zip(weights, counts, strict=True)
        ]
        of_shape = list(zip(*parts, strict=True))  # [shape][subject]
        present = tuple(tuple(i for i, part in enumerate(those) if part) for those in of_shape)
        names = [
            "concept order" if number == 0 else f"concept order {number}" for number in range(len(of_shape))
        ]
        subjects = tuple(
            Rounds.of_weights(seed, [those[i] for i in places], name)
            for those, places, name in zip(of_shape, present, names, strict=True)
        )
        shapes = Rounds.of_weights(seed, [sum(those) for those in of_shape], "shape order")
        return cls(shapes, subjects, present)

    def shape(self, n: int) -> int:
        """The shape of sample `n`."""
        return self.shapes(n // self.step)

    def subject(self, n: int) -> int:
        """The subject of sample `n`."""
        shape = self.shape(n)
        return self.present[shape][self.subjects[shape](self._before(n, shape))]

    def number_among(self, n: int, subjects: Collection[int]) -> int:
        """How many samples before `n` have its shape and are of one of `subjects`."""
        return self.number_before(n, self.shape(n), subjects)

    def number_before(self, n: int, shape: int, subjects: Collection[int]) -> int:
        """How many samples before `n` have `shape` and are of one of `subjects`."""
        kinds = [kind for kind, subject in enumerate(self.present[shape]) if subject in subjects]
        return self.subjects[shape].number_among(self._before(n, shape), kinds)

    def _before(self, n: int, shape: int) -> int:
        """How many samples before `n` have `shape`."""
        step, place = divmod(n, self.step)
        own = place if self.shapes(step) == shape else 0
        return self.shapes.number_among(step, [shape]) * self.step + own
