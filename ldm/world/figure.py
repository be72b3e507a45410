"""The README's figures: what DreamBooth learns, and what the prior-preservation loss preserves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ldm.concepts import CLASS_WORD
from ldm.config import read_plain
from ldm.data.images import grid, image_files, load_image, resize_and_crop, to_image
from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.evaluation.features import Dino
from ldm.evaluation.metrics import subject_fidelity
from ldm.formats.knowledge import advised_sampling
from ldm.methods.load import LoadedModel, load_for_sampling
from ldm.models.latent_diffusion import LatentDiffusion

SCENES = (
    "in the snow",
    "on the moon",
    "in the jungle",
    "on the beach",
    "under water",
    "in the desert",
    "at night",
    "on a red background",
)
COLUMNS = len(SCENES)
PER_SCENE = 8
"""Pictures of the subject in each scene, of which the likest and the unlikest are shown too."""

Settings = tuple[str | None, int | None, float | None]
"""Sampler, steps and guidance; None for the base's advice."""

Row = tuple[str, list[Image.Image]]
"""A title and the pictures below it."""


def figure(
    run: Path, without_prior: Path, settings: Settings, seed: int, zoom: int, dino: str
) -> Image.Image:
    """One subject: the class before and after, with the prior loss and without it, and the subject in scenes.

    run: folder of a finished run. without_prior: of one that differs only in `prior_loss_weight=0`.
    seed: of each row's first picture; rows of the bare class have the same seeds.
    zoom: factor by which pictures are enlarged. dino: folder or hub id of the network that finds the likest pictures.
    """
    config = read_plain(run / "configs" / "config.yaml")
    refuse_several(config, run)
    base, word = config["model"]["params"]["base"], config["data"]["params"]["class_word"]
    sampling = advised_sampling(base, *settings)
    bare = [f"a photo of a {word}"] * COLUMNS
    photographs = subject_images(config)
    tuned = load_for_sampling(run)
    drawn = in_scenes(tuned, f"a photo of [V] {word}", SCENES, PER_SCENE, sampling, seed)
    order = by_likeness(drawn, photographs, dino)
    half = COLUMNS // 2

    def bare_class(model: LatentDiffusion) -> list[Image.Image]:
        return sampled(model, bare, sampling, seed)

    rows = [
        ("the subject's images", photographs),
        (f"[V] {word} " + ", ".join(SCENES), drawn[::PER_SCENE]),
        (
            f"the {half} likest (left) and the {half} unlikest (right) of {len(drawn)} such pictures, by DINO",
            [drawn[index] for index in [*order[:half], *order[-half:]]],
        ),
        (f'"{bare[0]}", before', bare_class(LatentDiffusion.from_base(base).eval())),
        (f'"{bare[0]}", after', bare_class(tuned.model)),
        (
            f'"{bare[0]}", after training without the prior loss',
            bare_class(load_for_sampling(without_prior).model),
        ),
    ]
    return sheet(rows, zoom)


def figure_of_runs(
    runs: Sequence[Path], titles: Sequence[str] | None, settings: Settings, seed: int, zoom: int
) -> Image.Image:
    """A row for each run: two photographs, and the run's prompt in the other columns' scenes. `seed` as in `figure`.

    titles: of the rows; None: what each shows.
    """
    rows = []
    for place, run in enumerate(runs):
        config = read_plain(run / "configs" / "config.yaml")
        refuse_several(config, run)
        data = config["data"]["params"]
        sampling = advised_sampling(config["model"]["params"]["base"], *settings)
        prompt = data["prompt"].replace(CLASS_WORD, data["class_word"])
        scenes = SCENES[: COLUMNS - 2]
        drawn = in_scenes(load_for_sampling(run), prompt, scenes, 1, sampling, seed)
        shown = f"two of its images; [V] {data['class_word']} " + ", ".join(scenes)
        rows.append((titles[place] if titles else shown, subject_images(config)[:2] + drawn))
    return sheet(rows, zoom)


def figure_of_evaluations(
    folders: Sequence[Path], titles: Sequence[str] | None, prompts: Sequence[int], zoom: int
) -> Image.Image:
    """A row for each folder that scripts/evaluate.py has written: the first picture of each of `prompts`, by number.

    titles: of the rows; None: the folders. Raises UserError for a picture that is not there.
    """
    rows = []
    for place, folder in enumerate(folders):
        paths = [folder / "subject" / f"{number:02d}-0.png" for number in prompts]
        for path in paths:
            if not path.is_file():
                raise UserError(
                    f"{path}: no such picture; --evaluations takes folders of scripts/evaluate.py --ckpt"
                )
        rows.append((titles[place] if titles else str(folder), [load_image(path) for path in paths]))
    return sheet(rows, zoom)


def refuse_several(config: Mapping[str, Any], run: Path) -> None:
    """Raise UserError for a run of several subjects."""
    if config["data"]["params"].get("concepts"):
        raise UserError(
            f"{run} has several subjects, and a figure is of one; --evaluations can show any pictures"
        )


def subject_images(config: dict[str, Any]) -> list[Image.Image]:
    """The photographs of a run's subject, as training sees them."""
    data = config["data"]["params"]
    paths = image_files(data["data_root"])
    return [resize_and_crop(load_image(path, data["size"]), data["size"]) for path in paths]


def in_scenes(
    tuned: LoadedModel, prompt: str, scenes: Sequence[str], per_scene: int, sampling: Sampling, seed: int
) -> list[Image.Image]:
    """`per_scene` pictures of the subject, which `prompt` names, in each of the scenes, scene by scene."""
    prompts = [f"{prompt} {scene}" for scene in scenes for _ in range(per_scene)]
    return sampled(tuned.model, [tuned.with_identifier(prompt) for prompt in prompts], sampling, seed)


def sampled(
    model: LatentDiffusion, prompts: Sequence[str], sampling: Sampling, seed: int
) -> list[Image.Image]:
    """A picture of each prompt, the first from `seed`, the next from `seed + 1`, ..."""
    pixels = model.images(prompts, range(seed, seed + len(prompts)), sampling, batch_size=16)
    return [to_image(one) for one in pixels]


def by_likeness(drawn: Sequence[Image.Image], photographs: Sequence[Image.Image], dino: str) -> list[int]:
    """Indices of `drawn`, the likest to the photographs first."""
    network = Dino(dino)
    likeness = subject_fidelity(network.images(drawn), network.images(photographs))
    return likeness.argsort(descending=True).tolist()


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
