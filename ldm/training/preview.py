"""What a run will see, on one sheet, before it is trained: photographs as they are cropped and masked, their prompts,
and some prior samples."""

import tempfile
from pathlib import Path

import torch
from PIL import Image
from pytorch_lightning import LightningModule

from ldm.data.datamodule import DreamBoothData
from ldm.data.images import to_image
from ldm.data.sheet import Strip, draw_sheet, save_sheet
from ldm.data.subject import SubjectImages
from ldm.devices import DTYPES, set_tf32
from ldm.errors import UserError
from ldm.files import check_writable_file
from ldm.methods.base_latents import BaseLatents
from ldm.methods.dreambooth import DreamBooth
from ldm.training.build import build, quiet

COLUMNS = 8
DIMMED = 0.25
"""What is left of a pixel's distance from white where it does not count."""


def preview(config: dict[str, object], out: Path, prior_samples: int, trust: tuple[str, ...] = ()) -> str:
    """Write the sheet of a run's config to `out`, a PNG; returns a line about it.

    prior_samples: how many are drawn of each class; 0 for none.
    Raises UserError for a config whose data cannot be trained on, or that trains no subject.
    """
    quiet()
    check_writable_file(out)
    if out.suffix.lower() != ".png":
        raise UserError(f"--out {out}: the sheet is a PNG; name it so")
    with tempfile.TemporaryDirectory() as folder:
        data, model, trainer = build(config, Path(folder), trust)
        if not isinstance(data, DreamBoothData) or not isinstance(model, DreamBooth):
            raise UserError("this config trains no subject, so there is nothing to show")
        strips = [strip for place in range(len(data.subjects)) for strip in of_subject(data, model, place)]
        if model.prior_loss_weight > 0:
            data.trainer = trainer
            strips += of_classes(data, model, prior_samples)
        sheet, cells = draw_sheet("what the run will see", strips, COLUMNS)
    try:
        save_sheet(sheet, cells, out)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another --out") from error
    count = sum(len(images.files) for images in data.subjects)
    return f"{out}: {count} photographs, {sum(len(strip.pictures) for strip in strips)} pictures"


def of_subject(data: DreamBoothData, model: LightningModule, place: int) -> list[Strip]:
    """One strip for each photograph of a subject: as it is trained on, what of it counts, and its mirror image."""
    images, concept, strips = data.subjects[place], data.concepts[place], []
    for index, path in enumerate(images.files):
        pictures, labels = (
            [to_image(images.pixels(2 * index))],
            ["random crop" if images.random_crop else "crop"],
        )
        if images.masks[index] is not None:
            pictures.append(to_image(masked(images, 2 * index)))
            labels.append("what counts")
        if images.flip_probability > 0:
            pictures.append(to_image(images.pixels(2 * index + 1)))
            labels.append("mirrored")
        prompt = model.with_identifier(images.prompts[index])
        title = f"{concept.placeholder} {path.name}: '{prompt}'; {'; '.join(facts(images, index))}"
        strips.append(Strip(title, pictures, labels))
    return strips


def facts(images: SubjectImages, index: int) -> list[str]:
    """What is worth knowing of a photograph: its size, and what becomes of it."""
    (width, height), shape = images.original_sizes[index], images.shapes[index]
    scale = max(shape[0] / width, shape[1] / height)
    cut = 1 - shape[0] * shape[1] / (width * height * scale**2)
    found = [f"{width} x {height} to {shape[0]} x {shape[1]} px"]
    found += [f"{cut:.0%} cut off"] if cut > 0.005 else []
    found += [f"ENLARGED {scale:.1f} times"] if scale > 1 else []
    found += ["NO MASK"] if images.unmasked_weight != 1 and images.masks[index] is None else []
    caption = images.captions[index]
    found += [f"caption of {caption.source.name}"] if caption else []
    drawn = [images.changes(images.prompt_of(index, n), images.placeholder, images.seed, n) for n in range(2)]
    found += [f"changed to {drawn}"] if set(drawn) != {images.prompts[index]} else []
    return found


def masked(images: SubjectImages, view: int) -> torch.Tensor:
    """The pixels of a view, [3, H, W] in [-1, 1], paler where they count less in the loss."""
    pixels = images.pixels(view)
    weights = images.cell_weights(view, (pixels.shape[1], pixels.shape[2]))  # [1, H, W]
    return 1 - (1 - pixels) * (DIMMED + (1 - DIMMED) * weights)


@torch.no_grad()
def of_classes(data: DreamBoothData, model: DreamBooth, count: int) -> list[Strip]:
    """The first prior samples of each class, as the run will draw them or find them in the cache."""
    set_tf32(model.tf32)
    untrained = model.tuning.untrained(model.model, DTYPES[data.prior["precision"]])
    data.connect(BaseLatents(model.model, untrained), with_prior=True)
    strips = []
    for prior in data.classes:
        numbers = range(min(count, prior.count))
        if numbers:
            prior.bank.fill(numbers)
            pixels = model.model.decode(prior.bank.latents(numbers, model.device))
            pictures: list[Image.Image] = [to_image(one) for one in pixels]
            strips.append(
                Strip(f"class: '{prior.prompt}', {len(numbers)} of {prior.count} prior samples", pictures)
            )
    return strips
