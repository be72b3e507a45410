"""How much masks reduce the leakage of the scene into the subject, measured with exact masks."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.evaluation.features import Clip, Dino
from ldm.evaluation.metrics import cosine, subject_fidelity
from ldm.files import write_json
from ldm.randomness import generator
from ldm.world.drawing import World

IMAGES = 5
"""Photographs of a subject, as in the sample subject."""

MEMBER = "cat-black-fluent"
"""The subject, a withheld one of the benchmark."""

SCENE = "at sunset"
"""The scene of all its photographs."""


def make_photographs(out: Path, world: World, scene: str = SCENE, member: str = MEMBER) -> None:
    """Write photographs of one subject on one scene, with exact masks, and others each on another scene.

    out: contains `one_scene/` for training, and `other_scenes/` for measuring.
    """
    others = [name for name in world.scenes if name != scene]
    order = np.random.default_rng(generator(0, "mask scenes").initial_seed()).permutation(others)
    for folder, scenes in (("one_scene", [scene] * IMAGES), ("other_scenes", list(map(str, order[:IMAGES])))):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for i, name in enumerate(scenes):
            rng = np.random.default_rng(generator(0, f"mask {folder}", i).initial_seed())
            picture, mask = world.compose_with_mask(member, name, rng)
            Image.fromarray(picture).save(out / folder / f"{i:02d}.png")
            if folder == "one_scene":
                Image.fromarray(mask).save(out / folder / f"{i:02d}-mask.png")


def leakage(images: Tensor, scenes: Tensor, trained: int, prompted: Sequence[int]) -> dict[str, float]:
    """How often the photographs' scene appears in pictures of other scenes.

    images: CLIP's features of pictures, [N, E]. scenes: of a text for each scene, [S, E]. trained: the photographs'
    scene. prompted: each picture's own. `leak` is the share of pictures closest to the trained scene, `right` the
    share of those closest to their own.
    """
    nearest = cosine(images, scenes).argmax(dim=1)
    own = torch.tensor(prompted, device=nearest.device)
    return {
        "leak": float((nearest == trained).double().mean()),
        "right": float((nearest == own).double().mean()),
    }


def measure(
    pictures: Mapping[str, Sequence[Image.Image]],
    photographs: Sequence[Image.Image],
    noun: str,
    clip: Clip,
    dino: Dino,
    scene: str = SCENE,
) -> dict[str, float]:
    """`leakage`, and DINO against photographs of other scenes. pictures: by the scene of their prompt."""
    names = [*pictures, scene]
    texts = clip.texts([f"a photo of a {noun} {name}" for name in names])
    flat = [(picture, place) for place, those in enumerate(pictures.values()) for picture in those]
    found = leakage(
        clip.images(picture for picture, _ in flat), texts, len(names) - 1, [place for _, place in flat]
    )
    features = dino.images(picture for picture, _ in flat)
    return {**found, "dino": float(subject_fidelity(features, dino.images(photographs)).mean())}


def report(rows: Sequence[Mapping[str, float]], out: Path) -> str:
    """Write the rows, one per seed and weight, and return them as a table."""
    write_json(out, list(rows))
    lines = [
        "| unmasked_weight | seed | leak | right scene | DINO, other scenes |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['unmasked_weight']:g} | {row['seed']:g} | {row['leak']:.3f} | {row['right']:.3f}"
        f" | {row['dino']:.3f} |"
        for row in rows
    ]
    return "\n".join(lines)
