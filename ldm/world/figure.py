"""The README's figure: what DreamBooth learns, and what the prior-preservation loss preserves."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ldm.config import read_plain
from ldm.data.images import grid, image_files, load_image, resize_and_crop, to_image
from ldm.formats.knowledge import advised_sampling
from ldm.methods.load import load_for_sampling
from ldm.models.latent_diffusion import LatentDiffusion

SCENES = ("in the snow", "on the moon", "in the jungle", "under water", "on a red background")
COLUMNS = 10

Settings = tuple[str | None, int | None, float | None]

Row = tuple[str, list[Image.Image]]
"""A title and the pictures below it."""


def figure(run: Path, without_prior: Path, settings: Settings, seed: int, zoom: int) -> Image.Image:
    """The whole sheet.

    run: folder of a finished run. without_prior: of one that differs only in `prior_loss_weight=0`.
    settings: sampler, steps and guidance; None for the base's advice.
    seed: of each row's first picture. zoom: factor by which pictures are enlarged.
    """
    config = read_plain(run / "configs" / "config.yaml")
    data, base = config["data"]["params"], config["model"]["params"]["base"]
    word, sampling = data["class_word"], advised_sampling(base, *settings)
    bare = [f"a photo of a {word}"] * COLUMNS
    scenes = [f"a photo of [V] {word} {scene}" for scene in SCENES for _ in range(COLUMNS // len(SCENES))]
    tuned, without = load_for_sampling(run), load_for_sampling(without_prior)

    def sampled(model: LatentDiffusion, prompts: Sequence[str]) -> list[Image.Image]:
        pictures = model.images(prompts, range(seed, seed + len(prompts)), sampling)
        return [to_image(pixels) for pixels in pictures]

    subject = [
        resize_and_crop(load_image(path, data["size"]), data["size"])
        for path in image_files(data["data_root"])
    ]
    rows = [
        ("the subject's images", subject),
        (f'base: "{bare[0]}"', sampled(LatentDiffusion.from_base(base).eval(), bare)),
        (
            f'fine-tuned: "... [V] {word}" ' + ", ".join(SCENES),
            sampled(tuned.model, [tuned.with_identifier(prompt) for prompt in scenes]),
        ),
        (f'fine-tuned: "{bare[0]}"', sampled(tuned.model, bare)),
        (f'fine-tuned without the prior loss: "{bare[0]}"', sampled(without.model, bare)),
    ]
    return sheet(rows, zoom)


def sheet(rows: Sequence[Row], zoom: int) -> Image.Image:
    """The rows below each other, each with its title."""
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
