"""Draw the README's figure: what DreamBooth learns, and what the prior-preservation loss keeps.

python scripts/figure.py --run logs/<run> --without_prior logs/<run with prior_loss_weight=0>
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.errors import exit_code_of

SCENES = ("in the snow", "on the moon", "in the jungle", "under water", "on a red background")
COLUMNS = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="a finished run")
    parser.add_argument(
        "--without_prior", required=True, help="the same with model.params.prior_loss_weight=0"
    )
    parser.add_argument("--out", default="assets/figure.png")
    parser.add_argument("--steps", type=int, default=30, help="sampler steps (dpmpp_2m)")
    parser.add_argument("--scale", type=float, default=4.0, help="classifier-free guidance")
    parser.add_argument("--seed", type=int, default=0, help="of a row's first image")
    parser.add_argument("--zoom", type=int, default=1, help="enlarge each image so many times")
    options = parser.parse_args(argv)
    return exit_code_of(draw, options)


def draw(options: argparse.Namespace) -> None:
    """Sample every row, and save them on one sheet with their titles."""
    from ldm.config import read_plain
    from ldm.data.images import image_files, load_image, resize_and_crop, save_image
    from ldm.methods.load import load_for_sampling
    from ldm.models.latent_diffusion import LatentDiffusion

    config = read_plain(Path(options.run) / "configs" / "config.yaml")
    data, base = config["data"]["params"], config["model"]["params"]["base"]
    subject = [resize_and_crop(load_image(path), data["size"]) for path in image_files(data["data_root"])]
    word = data["class_word"]
    bare = [f"a photo of a {word}"] * COLUMNS
    scenes = [f"a photo of [V] {word} {scene}" for scene in SCENES for _ in range(COLUMNS // len(SCENES))]
    tuned, without = load_for_sampling(options.run), load_for_sampling(options.without_prior)
    rows = [
        ("the subject's images", subject),
        (f'base: "{bare[0]}"', sample(LatentDiffusion.from_base(base).eval(), bare, options)),
        (
            f'fine-tuned: "... [V] {word}" ' + ", ".join(SCENES),
            sample(tuned.model, list(map(tuned.with_identifier, scenes)), options),
        ),
        (f'fine-tuned: "{bare[0]}"', sample(tuned.model, bare, options)),
        (f'fine-tuned without the prior loss: "{bare[0]}"', sample(without.model, bare, options)),
    ]
    save_image(sheet(rows, options.zoom), options.out)
    print(options.out)


def sample(model: Any, prompts: list[str], options: argparse.Namespace) -> list[Any]:
    """One image a prompt, with seeds counted up from --seed."""
    from ldm.data.images import to_image
    from ldm.diffusion.sampling import Sampling

    seeds = range(options.seed, options.seed + len(prompts))
    sampling = Sampling("dpmpp_2m", options.steps, options.scale)
    return [to_image(pixels) for pixels in model.images(prompts, seeds, sampling)]


def sheet(rows: list[tuple[str, list[Any]]], zoom: int) -> Any:
    """The rows below each other, each under its title."""
    from PIL import Image, ImageDraw, ImageFont

    from ldm.data.images import grid

    grids = [
        (title, grid([i.resize((i.width * zoom, i.height * zoom)) for i in row], COLUMNS))
        for title, row in rows
    ]
    font, line = ImageFont.load_default(size=15), 24
    width = max(picture.width for _, picture in grids)
    page = Image.new("RGB", (width, sum(picture.height + line for _, picture in grids)), "white")
    top = 0
    for title, picture in grids:
        ImageDraw.Draw(page).text((2, top + 4), title, fill="black", font=font)
        page.paste(picture, (0, top + line))
        top += picture.height + line
    return page


if __name__ == "__main__":
    sys.exit(main())
