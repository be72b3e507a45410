"""The embedded world's art: drawings from three packages of openly licensed emoji, in one sheet per vendor."""

import io
import json
import tarfile
from pathlib import Path

from PIL import Image

from ldm.errors import UserError
from ldm.world.drawing import CELL

VENDORS = {
    "noto": ("emoji-datasource-google-16.0.0.tgz", "package/img/google/64/{}.png"),
    "twemoji": ("emoji-datasource-twitter-16.0.0.tgz", "package/img/twitter/64/{}.png"),
    "fluent": ("lobehub-fluent-emoji-3d-1.1.0.tgz", "package/assets/{}.webp"),
}

DRAWINGS = {
    "dog": {"face": "1f436", "walking": "1f415", "poodle": "1f429", "service": "1f415-200d-1f9ba"},
    "cat": {"face": "1f431", "walking": "1f408", "black": "1f408-200d-2b1b"},
    "rabbit": {"face": "1f430", "running": "1f407"},
    "owl": {"sitting": "1f989"},
    "horse": {"head": "1f434", "running": "1f40e"},
    "teddy bear": {"sitting": "1f9f8", "face": "1f43b"},
    "robot": {"face": "1f916"},
    "car": {"side": "1f697", "front": "1f698", "tall": "1f699", "taxi": "1f695"},
    "boat": {"sail": "26f5", "speed": "1f6a4"},
    "backpack": {"school": "1f392"},
    "boot": {"high": "1f462", "hiking": "1f97e"},
    "sneaker": {"running": "1f45f"},
    "clock": {"alarm": "23f0", "mantel": "1f570-fe0f", "wall": "1f550"},
    "teapot": {"round": "1fad6"},
    "vase": {"amphora": "1f3fa", "urn": "26b1-fe0f"},
    "umbrella": {"open": "2602-fe0f", "beach": "26f1-fe0f"},
    "guitar": {"electric": "1f3b8"},
    "apple": {"red": "1f34e", "green": "1f34f"},
    "mushroom": {"spotted": "1f344", "brown": "1f344-200d-1f7eb"},
    "hat": {"top": "1f3a9", "sun": "1f452", "cap": "1f9e2"},
}
"""Noun -> name of the drawing -> Unicode code points, as the packages name their files."""

WITHHELD = {
    "about": "Members that no training has seen: the shipped sample subject, those for tuning settings, "
    "and those only evaluation may use.",
    "subject": ["dog-poodle-twemoji"],
    "evaluation": [
        "cat-black-fluent",
        "backpack-school-fluent",
        "boot-hiking-noto",
        "clock-mantel-twemoji",
        "vase-amphora-twemoji",
        "hat-sun-noto",
        "car-tall-twemoji",
        "teddy bear-sitting-twemoji",
    ],
    "tuning": [
        "dog-walking-noto",
        "cat-face-twemoji",
        "rabbit-face-twemoji",
        "horse-head-fluent",
        "boat-sail-fluent",
        "car-taxi-noto",
        "apple-green-fluent",
    ],
}


COLUMNS = 8
"""Cells in a row of a sheet."""


def make_art(packages: Path, out: Path) -> None:
    """Write one sheet of cells per vendor, the list of members, and those withheld, to `out`.

    packages: folder with the archives of VENDORS; raises UserError if one is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    members = []
    for vendor, (archive, pattern) in VENDORS.items():
        if not (packages / archive).is_file():
            raise UserError(f"no {archive} in {packages}: fetch it with `npm pack`, see --help")
        with tarfile.open(packages / archive) as package:
            drawings = drawings_of(package, pattern)
        for cell, (noun, drawing) in enumerate(drawings):
            name = f"{noun}-{drawing}-{vendor}"
            members.append({"name": name, "noun": noun, "vendor": vendor, "cell": cell})
        sheet = Image.new("RGBA", (COLUMNS * CELL, -(-len(drawings) // COLUMNS) * CELL))
        for cell, art in enumerate(drawings.values()):
            sheet.paste(art, (cell % COLUMNS * CELL, cell // COLUMNS * CELL))
        sheet.save(out / f"{vendor}.png", optimize=True)
    (out / "members.json").write_text(json.dumps(members, indent=0) + "\n")
    (out / "withheld.json").write_text(json.dumps(WITHHELD, indent=1) + "\n")


def drawings_of(package: tarfile.TarFile, pattern: str) -> dict[tuple[str, str], Image.Image]:
    """(noun, drawing) -> its art at the size of a cell, in the order of DRAWINGS. pattern: path of a code point."""
    names, found = set(package.getnames()), {}
    for noun, drawings in DRAWINGS.items():
        for drawing, code in drawings.items():
            paths = [pattern.format(spelling) for spelling in (code, code.replace("-fe0f", ""))]
            path = next((path for path in paths if path in names), None)
            if path is None:
                continue  # Fluent draws no brown mushroom.
            file = package.extractfile(path)
            assert file is not None, f"{path} is no file"
            art = Image.open(io.BytesIO(file.read())).convert("RGBA")
            art = art.crop(art.getchannel("A").getbbox())
            scale = CELL / max(art.size)
            size = [max(1, round(side * scale)) for side in art.size]
            found[noun, drawing] = art.resize(size, Image.Resampling.LANCZOS)
    return found
