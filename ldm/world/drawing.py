"""The embedded world: captioned 64 x 64 px pictures of emoji art on painted scenes.

Picture number i is a pure function of (seed, i): which noun, which member, which scene, which colour, where
and how large.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ldm.concepts import with_article
from ldm.errors import UserError
from ldm.files import find
from ldm.randomness import generator
from ldm.world.scenes import SCENES, Canvas, Picture, mix

CELL = 64
"""Side of one member's cell in the art sheets, px."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.10, 0.10),
    "yellow": (1.00, 0.82, 0.10),
    "green": (0.15, 0.70, 0.20),
    "blue": (0.12, 0.32, 0.90),
    "purple": (0.52, 0.15, 0.72),
    "pink": (1.00, 0.45, 0.70),
    "black": (0.13, 0.13, 0.15),
    "white": (0.93, 0.93, 0.95),
}

LIVING = {"dog", "cat", "rabbit", "owl", "horse", "teddy bear"}
"""Nouns whose members differ only mildly in hue: a green horse is not called just a horse."""

NAMES = ("bruno", "clara", "felix", "greta", "hugo", "irma", "jonas", "lotte", "oscar", "wanda")
"""Names of the first, second, ... known member of a noun, for captions that name individuals.

The model then knows words before a noun that denote one individual, as an identifier does.
"""


@dataclass(frozen=True)
class Member:
    """One individual of a noun: one vendor's drawing."""

    name: str
    noun: str
    vendor: str
    cell: int


@dataclass(frozen=True)
class Facts:
    """The content of a picture; `colour` is None if the member keeps its own.

    name: of the individual; members in other hues (variant > 0) have none.
    style: chooses between longer and shorter captions, in [0, 1).
    """

    noun: str
    member: str
    scene: str
    colour: str | None
    variant: int
    name: str | None
    style: float
    tells_scene: bool


def caption(facts: Facts, by_name: bool = False) -> str:
    """The caption of a picture; `by_name` adds the individual's name, if it has one: "a red hugo dog"."""
    words = [facts.colour, facts.name if by_name else None, facts.noun]
    thing = " ".join(word for word in words if word)
    if facts.style < 0.95:
        thing = with_article(thing)
    if facts.style < 0.7:
        thing = f"a photo of {thing}"
    return f"{thing} {facts.scene}" if facts.tells_scene else thing


def tinted(rgb: Picture, colour: tuple[float, float, float]) -> Picture:
    """`rgb` tinted in one colour, with its light and shade."""
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    target = np.array(colour, np.float32)
    dark, bright = 0.3 * target, target + 0.55 * (1 - target)
    ramp = (
        mix(dark, target, np.clip(2 * luma, 0, 1))
        + (bright - target) * np.clip(2 * luma - 1, 0, 1)[..., None]
    )
    return 0.2 * rgb + 0.8 * ramp


class World:
    """The art, and the rules for making pictures of it.

    art: folder with `members.json`, `withheld.json` and one sheet of cells per vendor.
    Withheld members never occur in numbered pictures; `compose` draws any member.
    """

    SIZES = (42, 44, 46, 48)
    """Longer side of the object in a 64 px picture, px."""

    VARIANTS = 3
    """Variants of each drawing: its own colours and two neighbouring hues."""

    def __init__(self, art: str | Path = "assets/world", size: int = 64):
        self.art, self.size = find(art), size
        try:
            members = json.loads((self.art / "members.json").read_text())
            withheld = json.loads((self.art / "withheld.json").read_text())
        except FileNotFoundError as missing:
            raise UserError(
                f"no world art at {missing.filename}: give its folder, or make it with scripts/make_world.py"
            ) from None
        self.members = {entry["name"]: Member(**entry) for entry in members}
        self.withheld: dict[str, list[str]] = {k: v for k, v in withheld.items() if k != "about"}
        hidden = {name for names in self.withheld.values() for name in names}
        self.known: dict[str, list[str]] = {}
        for member in self.members.values():
            if member.name not in hidden:
                self.known.setdefault(member.noun, []).append(member.name)
        self.nouns, self.scenes, self.colours = list(self.known), list(SCENES), list(COLOURS)
        self._drawings: dict[tuple[str, int, int], Picture] = {}

    @cached_property
    def _sheets(self) -> dict[str, Image.Image]:
        vendors = {member.vendor for member in self.members.values()}
        return {vendor: Image.open(self.art / f"{vendor}.png").convert("RGBA") for vendor in vendors}

    def drawing(self, name: str, variant: int = 0, longer_side: int = 48) -> Picture:
        """A member's art, [h, w, 4] in [0, 1] with straight alpha; variant 0 has the art's own colours."""
        key = (name, variant, longer_side)
        if key not in self._drawings:
            member = self.members[name]
            sheet = self._sheets[member.vendor]
            columns = sheet.width // CELL
            left, top = member.cell % columns * CELL, member.cell // columns * CELL
            cell = sheet.crop((left, top, left + CELL, top + CELL))
            cell = cell.crop(cell.getchannel("A").getbbox())
            if variant:
                cell = shifted_hue(cell, self._hue_shift(member.noun, variant))
            scale = longer_side / max(cell.size)
            cell = cell.resize([max(1, round(side * scale)) for side in cell.size], Image.Resampling.LANCZOS)
            self._drawings[key] = np.asarray(cell, np.float32) / 255
        return self._drawings[key]

    @staticmethod
    def _hue_shift(noun: str, variant: int) -> float:
        """Degrees."""
        return ((-14.0, 12.0) if noun in LIVING else (-45.0, 70.0))[variant - 1]

    def compose(
        self, name: str, scene: str, rng: np.random.Generator, colour: str | None = None, variant: int = 0
    ) -> NDArray[np.uint8]:
        """Member `name` on `scene`, [S, S, 3]."""
        return self.compose_with_mask(name, scene, rng, colour, variant)[0]

    def compose_with_mask(
        self, name: str, scene: str, rng: np.random.Generator, colour: str | None = None, variant: int = 0
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The same picture, and the member's mask [S, S]: 255 inside, 0 outside."""
        picture = np.array(SCENES[scene](Canvas(rng, self.size)), np.float32)
        longer = round(int(rng.choice(self.SIZES)) * self.size / 64)
        art = self.drawing(name, variant, longer)
        rgb, alpha = art[..., :3], art[..., 3:]
        if colour:
            rgb = tinted(rgb, COLOURS[colour])
        height, width = alpha.shape[:2]
        jitter = self.size // 21
        left = (self.size - width) // 2 + int(rng.integers(-jitter, jitter + 1))
        # Objects stand near the lower edge; flat ones (cars) not lower than tall ones.
        bottom = round(0.91 * self.size) + int(rng.integers(-jitter, jitter))
        top = max(0, min(bottom - height, self.size - height, (self.size - height + self.size // 3) // 2))
        left = max(0, min(left, self.size - width))
        spot = picture[top : top + height, left : left + width]
        spot += (rgb - spot) * alpha
        mask = np.zeros((self.size, self.size), np.uint8)
        mask[top : top + height, left : left + width] = np.round(alpha[..., 0] * 255)
        return np.round(picture.clip(0, 1) * 255).astype(np.uint8), mask

    def picture(self, seed: int, index: int, purpose: str = "world") -> tuple[NDArray[np.uint8], str, Facts]:
        """Picture `index`: pixels [S, S, 3], caption, facts. Each purpose has its own stream of pictures."""
        facts, rng = self._script(seed, index, purpose)
        pixels = self.compose(facts.member, facts.scene, rng, facts.colour, facts.variant)
        return pixels, caption(facts), facts

    def facts(self, seed: int, index: int, purpose: str = "world") -> Facts:
        """The content of picture `index`, without drawing it."""
        return self._script(seed, index, purpose)[0]

    def _script(self, seed: int, index: int, purpose: str) -> tuple[Facts, np.random.Generator]:
        """The facts of picture `index`, and the generator with which to draw it."""
        rng = np.random.default_rng(generator(seed, purpose, index).initial_seed())
        noun = self.nouns[int(rng.integers(len(self.nouns)))]
        place = int(rng.integers(len(self.known[noun])))
        scene = self.scenes[int(rng.integers(len(self.scenes)))]
        colour = self.colours[int(rng.integers(len(self.colours)))] if rng.random() < 0.2 else None
        variant = 0 if rng.random() < 0.5 else 1 + int(rng.integers(self.VARIANTS - 1))
        style, tells_scene = float(rng.random()), bool(rng.random() < 0.88)
        name = NAMES[place] if variant == 0 and place < len(NAMES) else None
        member = self.known[noun][place]
        return Facts(noun, member, scene, colour, variant, name, style, tells_scene), rng


def shifted_hue(picture: Image.Image, degrees: float) -> Image.Image:
    """`picture` (RGBA) with every hue rotated by `degrees`."""
    hue, saturation, value = picture.convert("RGB").convert("HSV").split()
    turned = (np.asarray(hue, np.int32) + round(degrees / 360 * 256)) % 256
    bands = (Image.fromarray(turned.astype(np.uint8)), saturation, value)
    rgb = Image.merge("HSV", bands).convert("RGB")
    rgb.putalpha(picture.getchannel("A"))
    return rgb
