"""The embedded world's scenes: painted backgrounds, each a function of a canvas and its draws.

They are smooth (gradients and anti-aliased shapes, no grain), so that a VAE of a megabyte can encode them and a
small UNet can learn them in an hour or two.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.floating]
"""[S, S, 3] in [0, 1]; a mask is [S, S]."""

Scene = Callable[["Canvas"], Picture]


class Canvas:
    """Coordinates in [0, 1] (y grows downwards), soft-edged masks, and the draws of one picture."""

    def __init__(self, rng: np.random.Generator, size: int):
        self.rng, self.size = rng, size
        grid = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.x, self.y = np.broadcast_arrays(grid[None, :], grid[:, None])
        self.light = float(rng.uniform(-0.05, 0.05))

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def colour(self, red: int, green: int, blue: int) -> Picture:
        """One colour of the scene, given in 0..255, slightly lighter or darker in each picture."""
        jitter = self.light + self.rng.uniform(-0.02, 0.02, 3)
        return np.clip(np.array([red, green, blue]) / 255 + jitter, 0, 1).astype(np.float32)

    def edge(self, distance: Picture) -> Picture:
        """A mask [S, S] that is 1 where `distance` (in picture sides) is positive, one pixel soft."""
        return np.clip(distance * self.size + 0.5, 0, 1)

    def disc(self, cx: float, cy: float, rx: float, ry: float) -> Picture:
        radius = np.sqrt(((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2)
        return self.edge((1 - radius) * min(rx, ry))

    def box(self, left: float, top: float, right: float, bottom: float) -> Picture:
        inside = np.minimum(
            np.minimum(self.x - left, right - self.x), np.minimum(self.y - top, bottom - self.y)
        )
        return self.edge(inside)

    def peak(self, cx: float, top: float, slope: float) -> Picture:
        """A triangle below the point (cx, top)."""
        return self.edge((self.y - top - slope * np.abs(self.x - cx)) / (1 + slope))

    def fade(self, top: Picture, bottom: Picture, until: float = 1.0) -> Picture:
        """A vertical gradient that reaches `bottom` at y = until."""
        return mix(top, bottom, np.clip(self.y / until, 0, 1))


def mix(a: Picture, b: Picture, mask: Picture) -> Picture:
    """`a` where mask [S, S] is 0, `b` where it is 1."""
    return a + (b - a) * mask[..., None]


def snow(c: Canvas) -> Picture:
    horizon = c.between(0.42, 0.5)
    picture = c.fade(c.colour(150, 180, 215), c.colour(205, 222, 240), horizon)
    hill = c.edge(c.y - horizon - 0.05 * np.sin(5 * c.x + c.between(0, 6)))
    picture = mix(picture, c.fade(c.colour(250, 252, 255), c.colour(215, 228, 245)), hill)
    for _ in range(9):
        flake = c.disc(c.between(0, 1), c.between(0, 0.42), 0.022, 0.022)
        picture = mix(picture, np.ones(3, np.float32), flake)
    return picture


def beach(c: Canvas) -> Picture:
    horizon, shore = c.between(0.34, 0.42), c.between(0.56, 0.62)
    picture = c.fade(c.colour(120, 195, 250), c.colour(200, 232, 250), horizon)
    picture = mix(
        picture, c.fade(c.colour(20, 110, 190), c.colour(70, 190, 200), shore), c.edge(c.y - horizon)
    )
    wave = shore + 0.02 * np.sin(9 * c.x + c.between(0, 6))
    picture = mix(picture, c.colour(240, 250, 250), c.edge(c.y - wave + 0.03))
    return mix(picture, c.fade(c.colour(245, 220, 160), c.colour(225, 190, 120)), c.edge(c.y - wave))


def jungle(c: Canvas) -> Picture:
    picture = c.fade(c.colour(15, 70, 35), c.colour(30, 95, 40))
    for _ in range(9):
        cx, cy = c.between(0, 1), c.between(0, 0.75)
        green = c.colour(*[(40, 130, 50), (70, 160, 60), (20, 100, 60)][int(c.rng.integers(3))])
        lean, reach = c.between(-1.0, 1.0), c.between(0.12, 0.2)
        across, along = (c.x - cx) + lean * (c.y - cy), (c.y - cy) - lean * (c.x - cx)
        leaf = c.edge((1 - np.sqrt((across / 0.06) ** 2 + (along / reach) ** 2)) * 0.06)
        picture = mix(picture, green, leaf)
    return mix(picture, c.colour(60, 60, 25), c.edge(c.y - 0.86 - 0.02 * np.sin(7 * c.x + c.between(0, 6))))


def moon(c: Canvas) -> Picture:
    horizon = c.between(0.5, 0.58)
    picture = np.broadcast_to(c.colour(10, 10, 22), (c.size, c.size, 3))
    for _ in range(7):
        picture = mix(
            picture, c.colour(235, 235, 220), c.disc(c.between(0, 1), c.between(0, 0.45), 0.014, 0.014)
        )
    cx, cy = c.between(0.12, 0.88), c.between(0.1, 0.16)
    picture = mix(picture, c.colour(60, 120, 220), c.disc(cx, cy, 0.09, 0.09))
    picture = mix(picture, c.colour(110, 190, 120), c.disc(cx - 0.02, cy + 0.01, 0.05, 0.03))
    ground = c.edge(c.y - horizon - 0.12 * (c.x - 0.5) ** 2)
    picture = mix(picture, c.fade(c.colour(175, 175, 180), c.colour(135, 135, 142)), ground)
    for _ in range(5):
        cx, cy, r = c.between(0, 1), c.between(0.66, 0.98), c.between(0.05, 0.11)
        picture = mix(picture, c.colour(105, 105, 112), c.disc(cx, cy, r, 0.4 * r))
    return picture


def city(c: Canvas) -> Picture:
    picture = c.fade(c.colour(170, 200, 235), c.colour(240, 225, 215), 0.6)
    left = c.between(-0.1, 0.0)
    while left < 1:
        width, top = c.between(0.11, 0.18), c.between(0.08, 0.4)
        wall = c.colour(*[(95, 105, 130), (125, 130, 150), (75, 85, 110)][int(c.rng.integers(3))])
        picture = mix(picture, wall, c.box(left, top, left + width, 1))
        lit = c.colour(250, 225, 130)
        for floor in range(3):
            y = top + 0.05 + 0.11 * floor
            picture = mix(picture, lit, c.box(left + 0.03, y, left + width - 0.03, y + 0.045))
        left += width + 0.015
    return mix(picture, c.colour(85, 85, 92), c.edge(c.y - 0.76))


def mountain(c: Canvas) -> Picture:
    picture = c.fade(c.colour(95, 165, 235), c.colour(190, 220, 245), 0.6)
    for cx, top in (
        (c.between(0.0, 0.25), c.between(0.2, 0.3)),
        (c.between(0.6, 0.9), c.between(0.06, 0.14)),
    ):
        slope = c.between(1.0, 1.3)
        picture = mix(picture, c.colour(100, 105, 130), c.peak(cx, top, slope))
        cap = c.peak(cx, top, slope) * c.edge(top + 0.14 + 0.03 * np.sin(28 * c.x) - c.y)
        picture = mix(picture, c.colour(250, 250, 255), cap)
    return mix(
        picture, c.fade(c.colour(110, 165, 85), c.colour(80, 140, 70)), c.edge(c.y - c.between(0.66, 0.72))
    )


def cobblestone(c: Canvas) -> Picture:
    picture = np.broadcast_to(c.colour(88, 80, 78), (c.size, c.size, 3))
    shift = c.between(0, 1)
    row = np.floor(c.y * 7)
    column = c.x * 6 + 0.5 * (row % 2) + shift
    cx, cy = column - np.floor(column) - 0.5, c.y * 7 - row - 0.5
    stone = np.clip((0.46 - (np.abs(cx) ** 3 + np.abs(cy) ** 3) ** (1 / 3)) * 9 + 0.5, 0, 1)
    shade = 0.5 + 0.5 * np.sin(2.4 * np.floor(column) + 1.7 * row)
    stones = mix(c.colour(150, 140, 132), c.colour(190, 180, 168), shade)
    return picture + (stones - picture) * stone[..., None]


def wooden_floor(c: Canvas) -> Picture:
    horizon = c.between(0.3, 0.38)
    picture = np.broadcast_to(c.colour(232, 220, 198), (c.size, c.size, 3))
    plank = np.floor((c.y - horizon) * 7)
    tone = 0.5 + 0.5 * np.sin(2.1 * plank + c.between(0, 6))
    boards = mix(c.colour(150, 92, 48), c.colour(182, 118, 64), tone)
    gap = np.clip(1.2 - np.abs((c.y - horizon) * 7 - np.round((c.y - horizon) * 7)) * c.size / 7, 0, 1)
    boards = mix(boards, c.colour(95, 55, 28), 0.8 * gap)
    return picture + (boards - picture) * c.edge(c.y - horizon)[..., None]


def under_water(c: Canvas) -> Picture:
    picture = c.fade(c.colour(60, 190, 225), c.colour(10, 55, 120))
    ray = np.sin(12 * (c.x + 0.5 * c.y) + c.between(0, 6))
    picture = mix(picture, c.colour(170, 235, 245), 0.3 * np.clip(ray, 0, 1) * (1 - c.y))
    for _ in range(7):
        cx, cy, r = c.between(0, 1), c.between(0, 1), c.between(0.02, 0.045)
        picture = mix(picture, c.colour(190, 240, 250), 0.7 * c.disc(cx, cy, r, r))
    return picture


def desert(c: Canvas) -> Picture:
    picture = c.fade(c.colour(250, 200, 110), c.colour(255, 232, 175), 0.5)
    cx, cy = c.between(0.1, 0.9), c.between(0.1, 0.18)
    picture = mix(picture, c.colour(255, 250, 215), c.disc(cx, cy, 0.08, 0.08))
    for height, shade in ((0.42, (222, 150, 80)), (0.58, (205, 125, 60)), (0.78, (180, 100, 45))):
        crest = height + 0.06 * np.sin(c.between(4, 6) * c.x + c.between(0, 6))
        picture = mix(picture, c.colour(*shade), c.edge(c.y - crest))
    return picture


def night(c: Canvas) -> Picture:
    picture = c.fade(c.colour(12, 16, 60), c.colour(45, 45, 110), 0.8)
    cx, cy = c.between(0.12, 0.88), c.between(0.1, 0.16)
    crescent = c.disc(cx, cy, 0.09, 0.09) * (1 - c.disc(cx + 0.045, cy - 0.02, 0.08, 0.08))
    picture = mix(picture, c.colour(250, 240, 170), crescent)
    for _ in range(6):
        star = c.disc(c.between(0, 1), c.between(0, 0.6), 0.018, 0.018)
        picture = mix(picture, c.colour(250, 245, 200), star)
    ground = c.edge(c.y - 0.8 - 0.03 * np.sin(6 * c.x + c.between(0, 6)))
    return mix(picture, c.colour(12, 30, 40), ground)


def grass(c: Canvas) -> Picture:
    horizon = c.between(0.36, 0.46)
    picture = c.fade(c.colour(110, 190, 250), c.colour(205, 235, 252), horizon)
    for _ in range(2):
        cx, cy = c.between(0, 1), c.between(0.06, 0.24)
        for dx in (-0.08, 0.0, 0.08):
            picture = mix(picture, c.colour(250, 252, 255), c.disc(cx + dx, cy, 0.08, 0.045))
    meadow = c.edge(c.y - horizon - 0.03 * np.sin(4 * c.x + c.between(0, 6)))
    return mix(picture, c.fade(c.colour(130, 210, 70), c.colour(60, 160, 45)), meadow)


def sunset(c: Canvas) -> Picture:
    horizon = c.between(0.58, 0.64)
    picture = c.fade(c.colour(110, 50, 130), c.colour(255, 140, 60), horizon)
    sun = c.between(0.15, 0.85)
    picture = mix(picture, c.colour(255, 225, 110), c.disc(sun, horizon - 0.06, 0.15, 0.15))
    sea = c.fade(c.colour(200, 90, 90), c.colour(60, 30, 90))
    sea = mix(sea, c.colour(255, 190, 100), 0.6 * c.box(sun - 0.1, horizon, sun + 0.1, 1))
    return picture + (sea - picture) * c.edge(c.y - horizon)[..., None]


def pink_fabric(c: Canvas) -> Picture:
    fold = np.sin(11 * (c.x + 0.35 * np.sin(3 * c.y + c.between(0, 6))) + c.between(0, 6))
    return mix(c.colour(225, 120, 160), c.colour(250, 185, 210), 0.5 + 0.5 * fold)


def wheat_field(c: Canvas) -> Picture:
    horizon = c.between(0.32, 0.4)
    picture = c.fade(c.colour(130, 185, 235), c.colour(225, 232, 225), horizon)
    furrow = np.sin(26 * (c.x - 0.5) / (0.3 + c.y) + c.between(0, 6))
    field = mix(c.colour(205, 160, 45), c.colour(240, 205, 90), 0.5 + 0.5 * furrow)
    return picture + (field - picture) * c.edge(c.y - horizon)[..., None]


def blue_house(c: Canvas) -> Picture:
    picture = c.fade(c.colour(215, 230, 240), c.colour(245, 240, 225), 0.7)
    left = c.between(0.0, 0.3)
    right, eaves = left + 0.68, 0.32
    picture = mix(picture, c.colour(60, 105, 205), c.box(left, eaves, right, 1))
    picture = mix(picture, c.colour(165, 70, 50), c.peak(left + 0.34, 0.04, 0.75) * c.edge(eaves - c.y))
    for x in (left + 0.06, right - 0.2):
        picture = mix(picture, c.colour(250, 245, 200), c.box(x, 0.4, x + 0.14, 0.54))
    return mix(picture, c.fade(c.colour(150, 190, 100), c.colour(120, 165, 80)), c.edge(c.y - 0.76))


def plain(red: int, green: int, blue: int) -> Scene:
    """A studio background of one colour, slightly darker towards the corners."""

    def paint(c: Canvas) -> Picture:
        corner = np.clip(((c.x - 0.5) ** 2 + (c.y - c.between(0.3, 0.6)) ** 2), 0, 1)
        shade = c.colour(red, green, blue)
        return mix(shade, 0.7 * shade, corner)

    return paint


SCENES: dict[str, Scene] = {
    "in the snow": snow,
    "on the beach": beach,
    "in the jungle": jungle,
    "on the moon": moon,
    "with a city in the background": city,
    "with a mountain in the background": mountain,
    "on a cobblestone street": cobblestone,
    "on top of a wooden floor": wooden_floor,
    "under water": under_water,
    "in the desert": desert,
    "at night": night,
    "on green grass": grass,
    "at sunset": sunset,
    "on top of pink fabric": pink_fabric,
    "with a wheat field in the background": wheat_field,
    "with a blue house in the background": blue_house,
    "on a red background": plain(205, 45, 50),
    "on a blue background": plain(50, 95, 205),
    "on a yellow background": plain(250, 215, 80),
    "on a white background": plain(245, 245, 245),
}
