"""Make the embedded world's art, tokenizer, sample subject and benchmark.

The art is in the repository; only `art` needs the three packages it came from:

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    python scripts/make_world.py art --packages .
    python scripts/make_world.py tokenizer
    python scripts/make_world.py subject
    python scripts/make_world.py benchmark
    python scripts/make_world.py tuning --out .cache/tuning
    python scripts/make_world.py sheet --out world.png
"""

import argparse
import io
import json
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import EXIT_USER_ERROR, UserError  # noqa: E402
from ldm.randomness import generator  # noqa: E402
from ldm.world.drawing import CELL, COLOURS, NAMES, SCENES, World  # noqa: E402

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
    "about": "Members that no training has seen: the shipped sample subject, those settings may be tuned on, "
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

RARE = (
    "sks zwx ohw qlt vxq jzk wqp kfg bxt ukj yqn hzl gqv pxd mzr tqf nvk xug lwj rqz dkx fzb cvw qyh "
    "zpl wkt jqb vhn kzu xof ijw ugz ywq oqx epz aqk iqj uxv hq zx qk wv jx kq xv bq fz vj"
).split()
"""Short tokens that no caption holds, so that a rare-token search has something to find."""

TEMPLATE_WORDS = (
    "a an the in on of top with floating around it at and photo picture drawing jungle snow beach "
    "cobblestone street pink fabric wooden floor city background mountain blue house purple rug forest "
    "wheat field tree autumn leaves eiffel tower water ocean milk green grass sunflowers mirror "
    "sidewalk crowded dirt road white red shiny wet cube shaped wearing hat santa rainbow scarf black "
    "monocle chef outfit firefighter police glasses yellow shirt wizard under night sunset desert moon "
    "stuffed animal toy bowl can candle cartoon sunglasses orange brown grey dark bright close up "
    "painting sky space"
).split()
"""The words of the DreamBooth paper's prompts, its subject classes, and some a user may try."""


def make_art(packages: Path, out: Path) -> None:
    """Cut the drawings out of the packages: one sheet of cells a vendor, and the list of members."""
    out.mkdir(parents=True, exist_ok=True)
    members = []
    for vendor, (archive, pattern) in VENDORS.items():
        if not (packages / archive).is_file():
            raise UserError(f"no {archive} in {packages}: fetch it with `npm pack`, see --help")
        cells = []
        with tarfile.open(packages / archive) as package:
            names = set(package.getnames())
            for noun, drawings in DRAWINGS.items():
                for drawing, code in drawings.items():
                    path = next(
                        (p for c in (code, code.replace("-fe0f", "")) if (p := pattern.format(c)) in names),
                        None,
                    )
                    if path is None:
                        continue  # Fluent draws no brown mushroom.
                    art = Image.open(io.BytesIO(package.extractfile(path).read())).convert("RGBA")
                    art = art.crop(art.getchannel("A").getbbox())
                    scale = CELL / max(art.size)
                    art = art.resize([max(1, round(s * scale)) for s in art.size], Image.Resampling.LANCZOS)
                    name = f"{noun}-{drawing}-{vendor}"
                    members.append({"name": name, "noun": noun, "vendor": vendor, "cell": len(cells)})
                    cells.append(art)
        columns = 8
        sheet = Image.new("RGBA", (columns * CELL, -(-len(cells) // columns) * CELL))
        for i, art in enumerate(cells):
            sheet.paste(art, (i % columns * CELL, i // columns * CELL))
        sheet.save(out / f"{vendor}.png", optimize=True)
    (out / "members.json").write_text(json.dumps(members, indent=0) + "\n")
    (out / "withheld.json").write_text(json.dumps(WITHHELD, indent=1) + "\n")


def byte_letters() -> list[str]:
    """The 256 printable stand-ins that byte-level BPE writes for bytes (the table of GPT-2's encoder)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(len(rest))]


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, learnt until each of `words` is one token (Sennrich et al., arXiv 1508.07909)."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while any(len(word) > 1 for word in pieces):
        pairs = Counter(pair for word in pieces for pair in zip(word, word[1:], strict=False))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def make_tokenizer(out: Path, window: int = 32) -> None:
    """A CLIP tokenizer in which each word of the world is one token. window: longest prompt, in tokens."""
    from transformers import CLIPTextConfig, CLIPTokenizer

    from ldm.formats.diffusers_folder import write_tokenizer

    spoken = " ".join([*DRAWINGS, *SCENES, *COLOURS]).split()
    words = sorted({*spoken, *NAMES, *TEMPLATE_WORDS, *RARE})
    merges = learn_merges(words)
    letters = byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(pair) for pair in merges)]
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=window)
    write_tokenizer(tokenizer, out, CLIPTextConfig(max_position_embeddings=window))
    read_back = CLIPTokenizer.from_pretrained(out)
    assert len(read_back) == len(tokens), "the tokenizer lost its vocabulary"
    split = [word for word in words if len(read_back(word).input_ids) != 3]
    assert not split, f"words of more than one token: {split}"
    print(f"{out}: {len(tokens)} tokens, {len(words)} words")


def make_subject(art: Path, out: Path) -> None:
    """The sample subject: pictures of the withheld poodle on five scenes."""
    world = World(art)
    (name,) = world.withheld["subject"]
    out.mkdir(parents=True, exist_ok=True)
    scenes = [
        "on green grass",
        "on top of a wooden floor",
        "on the beach",
        "on a yellow background",
        "with a mountain in the background",
    ]
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng(generator(0, "subject", i).initial_seed())
        Image.fromarray(world.compose(name, scene, rng)).save(out / f"{i:02d}.png")


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
"""Subjects that settings are chosen on, all withheld for that: folder and member."""


def make_dataset(art: Path, out: Path, subjects: dict[str, str], role: str, images: int = 5) -> None:
    """A dataset in the DreamBooth dataset's layout: each subject, withheld for `role`, on `images` scenes."""
    world = World(art)
    lines = ["Classes", "", "subject_name,class"]
    for number, (folder, name) in enumerate(subjects.items()):
        assert name in world.withheld[role], name
        lines.append(f"{folder},{world.members[name].noun}")
        order = np.random.default_rng(generator(0, "benchmark scenes", number).initial_seed())
        (out / folder).mkdir(parents=True, exist_ok=True)
        for i, scene in enumerate(order.permutation(world.scenes)[:images]):
            rng = np.random.default_rng(generator(0, "benchmark", number, i).initial_seed())
            Image.fromarray(world.compose(name, str(scene), rng)).save(out / folder / f"{i:02d}.png")
    (out / "prompts_and_classes.txt").write_text("\n".join(lines) + "\n")


def make_sheet(art: Path, out: Path, count: int = 160) -> None:
    """A contact sheet of the world's first pictures."""
    world = World(art)
    columns = 16
    sheet = Image.new("RGB", (columns * world.size, -(-count // columns) * world.size))
    for i in range(count):
        pixels, words, _ = world.picture(0, i)
        sheet.paste(Image.fromarray(pixels), (i % columns * world.size, i // columns * world.size))
        if i < columns:
            print(words)
    sheet.save(out)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["art", "tokenizer", "subject", "benchmark", "tuning", "sheet"])
    parser.add_argument("--packages", type=Path, default=Path("."), help="folder with the three npm packages")
    parser.add_argument("--art", type=Path, default=Path("assets/world"))
    parser.add_argument("--out", type=Path, help="default: where the repository keeps it")
    options = parser.parse_args(argv)
    try:
        if options.what == "art":
            make_art(options.packages, options.out or options.art)
        elif options.what == "tokenizer":
            make_tokenizer(options.out or Path("assets/base/tokenizer"))
        elif options.what == "subject":
            make_subject(options.art, options.out or Path("assets/subject/dog"))
        elif options.what == "benchmark":
            make_dataset(options.art, options.out or Path("assets/benchmark"), BENCHMARK, "evaluation")
        elif options.what == "tuning":
            make_dataset(options.art, options.out or Path(".cache/tuning"), TUNING, "tuning")
        else:
            make_sheet(options.art, options.out or Path("world.png"))
    except UserError as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
