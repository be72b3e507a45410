"""Shapes of training pictures: a square, or buckets of about the same area for photographs that are not square."""

import math
from collections.abc import Sequence

MAX_RATIO = 2.0
"""Longest side over shortest of a bucket; longer photographs are cropped to it."""

Shape = tuple[int, int]
"""Width and height in px."""


def buckets(size: int, step: int | None) -> list[Shape]:
    """The shapes for photographs: the square of `size`, and with `step` others of about the same area.

    Sides are multiples of `step`; the longer one makes the area closest to the square's (as in NovelAI's aspect
    buckets, which many trainers of Stable Diffusion use).
    """
    if step is None:
        return [(size, size)]
    found = {(size, size)}
    for shorter in range(step, size, step):
        longer = round(size * size / shorter / step) * step
        if longer <= MAX_RATIO * shorter:
            found |= {(shorter, longer), (longer, shorter)}
    return sorted(found)


def nearest(width: int, height: int, shapes: Sequence[Shape]) -> Shape:
    """The shape with the aspect ratio closest to a photograph's."""
    wanted = math.log(width / height)
    return min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1]) - wanted))
