"""Datasets of the embedded world's withheld individuals: the sample subject, the benchmark, the tuning subjects."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.console import counted
from ldm.randomness import generator
from ldm.world.drawing import World

SUBJECT_SCENES = (
    "on green grass",
    "on top of a wooden floor",
    "on the beach",
    "on a yellow background",
    "with a mountain in the background",
)
"""Scenes of the sample subject's pictures, in order."""

BENCHMARK = {
    "cat": "cat-black-fluent",
    "backpack": "backpack-school-fluent",
    "boot": "boot-hiking-noto",
    "vase": "vase-amphora-twemoji",
    "car": "car-tall-twemoji",
    "teddy_bear": "teddy bear-sitting-twemoji",
}
"""Subjects of the embedded benchmark, all withheld for evaluation: folder and member."""

TUNING = {
    "dog": "dog-walking-noto",
    "rabbit": "rabbit-face-twemoji",
    "boat": "boat-sail-fluent",
    "taxi": "car-taxi-noto",
}
"""Subjects for tuning settings, all withheld for that purpose: folder and member."""


def make_subject(world: World, out: Path) -> None:
    """Write the sample subject to `out`: the withheld poodle on five scenes."""
    (name,) = world.withheld["subject"]
    out.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(SUBJECT_SCENES):
        rng = np.random.default_rng(generator(0, "subject", i).initial_seed())
        Image.fromarray(world.compose(name, scene, rng)).save(out / f"{i:02d}.png")


def make_dataset(world: World, out: Path, subjects: Mapping[str, str], role: str, images: int = 5) -> None:
    """Write `subjects` to `out` in the DreamBooth dataset's layout, each on `images` scenes, with a progress bar.

    subjects: folder -> member, all withheld for `role`.
    """
    lines = ["Classes", "", "subject_name,class"]
    for number, (folder, name) in enumerate(counted(subjects.items(), "drawing", "subject")):
        assert name in world.withheld[role], name
        lines.append(f"{folder},{world.members[name].noun}")
        order = np.random.default_rng(generator(0, "benchmark scenes", number).initial_seed())
        (out / folder).mkdir(parents=True, exist_ok=True)
        for i, scene in enumerate(order.permutation(world.scenes)[:images]):
            rng = np.random.default_rng(generator(0, "benchmark", number, i).initial_seed())
            Image.fromarray(world.compose(name, str(scene), rng)).save(out / folder / f"{i:02d}.png")
    (out / "prompts_and_classes.txt").write_text("\n".join(lines) + "\n")


def make_sheet(world: World, out: Path, count: int = 160, columns: int = 16) -> list[str]:
    """Write a contact sheet of the world's first `count` pictures; returns the captions of the first row."""
    sheet = Image.new("RGB", (columns * world.size, -(-count // columns) * world.size))
    captions = []
    for i in range(count):
        pixels, caption, _ = world.picture(0, i)
        sheet.paste(Image.fromarray(pixels), (i % columns * world.size, i // columns * world.size))
        captions.append(caption)
    sheet.save(out)
    return captions[:columns]
