"""Draws pictures of prompts, saved one by one, and a grid of all of them (`scripts/txt2img.py`)."""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ldm.concepts import PLACEHOLDER, placeholders_in
from ldm.console import progress_bar
from ldm.data.images import grid
from ldm.data.png import png_text
from ldm.devices import choose_device, choose_dtype
from ldm.errors import UserError, say
from ldm.files import check_writable, find_near
from ldm.formats.knowledge import advised_sampling
from ldm.methods.draw import Drawing, Picture, batches, next_path, save_picture
from ldm.methods.load import load_for_sampling
from ldm.methods.parts import FACTS, Parts, add_parts, word_near
from ldm.models.memory import pictures_at_once

OPTIONS = {
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "noise_seed": "noise_seed",
    "sampler": "sampler",
    "steps": "steps",
    "spacing": "spacing",
    "eta": "ddim_eta",
    "guidance_scale": "scale",
    "guidance_interval": "guidance_interval",
    "deepcache": "deepcache",
    "height": "H",
    "width": "W",
    "precision": "precision",
    "prediction_type": "prediction_type",
    "clip_skip": "clip_skip",
    "vae": "vae",
    "variant": "variant",
    "revision": "revision",
    "n_samples": "n_samples",
    "n_iter": "n_iter",
    "n_rows": "n_rows",
}
"""Fact in a PNG -> command-line option; prompts, model and EMA are handled separately."""


def txt2img(options: argparse.Namespace, base_options: Mapping[str, object]) -> Iterator[str]:
    """Draw pictures by the command line's `options`; yields a line for each written file or folder."""
    prompts = read_prompts(options)
    samples = options.outdir / "samples"
    for folder in (options.outdir, samples):
        check_writable(folder)
    drawing = load(options, base_options)
    asked, prompts = prompts, [drawing.loaded.with_identifier(prompt) for prompt in prompts]
    warn_of_no_effect(asked, drawing)
    pictures = plan(options, prompts)
    groups = batches(pictures, batch_size(options, drawing))
    steps = len(groups) * drawing.loaded.model.passes(drawing.sampling)
    drawn = []
    with progress_bar(steps, f"sampling {len(pictures)} images", "step") as bar:
        for group in groups:
            images = drawing.draw(group, on_step=bar.update)
            drawn += images
            for picture, image in zip(group, images, strict=True):
                if not options.skip_save:
                    save_picture(image, next_path(samples, "{:05d}.png"), drawing.facts(picture))
    if not options.skip_grid:
        path = next_path(options.outdir, "grid-{:04d}.png")
        facts = {key: getattr(options, key) for key in ("n_samples", "n_iter", "n_rows")}
        facts |= {
            "prompts": json.dumps(prompts),
            **drawing.facts(groups[0][0]),
            "prompt": " | ".join(prompts),
        }
        save_picture(grid(drawn, columns=options.n_rows or options.n_samples), path, facts)
        yield str(path)
    if not options.skip_save:
        yield f"{len(drawn)} images in {samples}"


def read_prompts(options: argparse.Namespace) -> list[str]:
    """Prompts of --from-file, of --prompt, or of the PNG of --from-image."""
    if options.from_file is not None:
        try:
            prompts = Path(options.from_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--from-file {options.from_file}: cannot be read ({error})") from error
    elif options.prompt is not None:
        prompts = [options.prompt]
    else:
        prompts = options.prompts
    prompts = [prompt.strip() for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UserError(
            "the prompt is empty: describe a picture with --prompt, or name a file with one prompt per line"
        )
    return prompts


def warn_of_no_effect(prompts: Sequence[str], drawing: Drawing) -> None:
    """Warn of settings without effect, and of placeholders that the model does not know."""
    sampling, known = drawing.sampling, [subject.placeholder for subject in drawing.loaded.subjects]
    if sampling.guidance_scale == 1 and (sampling.negative_prompt or sampling.guidance_interval):
        say("warning: without guidance (--scale 1), --negative_prompt and --guidance_interval have no effect")
    unknown = {word for prompt in prompts for word in placeholders_in(prompt)} - {PLACEHOLDER, *known}
    if unknown:
        say(
            f"warning: {', '.join(sorted(unknown))} is drawn as plain text: the model's subjects are"
            f" {', '.join(known) or 'none'}"
        )


def batch_size(options: argparse.Namespace, drawing: Drawing) -> int:
    """How many pictures are drawn together: those of --batch_size, or on a GPU by default, what its memory holds."""
    model = drawing.loaded.model
    asked: int | str | None = options.batch_size
    if asked is None and model.device.type == "cpu":
        return int(options.n_samples)
    return asked if isinstance(asked, int) else pictures_at_once(model, drawing.height, drawing.width)


def load(options: argparse.Namespace, base_options: Mapping[str, object]) -> Drawing:
    """The model of --ckpt, ready to draw with the command line's settings."""
    device = choose_device(options.device)
    loaded = load_for_sampling(options.ckpt, device, base_options, options.trust)
    parts = Parts.of(options) or options.drawn_parts or Parts()
    add_parts(loaded, parts)
    loaded.model.for_sampling(device, choose_dtype(options.precision, device), options.compile)
    height, width = options.H or loaded.model.native_size, options.W or loaded.model.native_size
    loaded.model.latent_shape(height, width)
    model, weights = options.drawn_with
    if model == options.ckpt and weights not in (None, loaded.weights):
        say(f"warning: {options.from_image} was drawn with other weights than {model} has now")
    sampling = advised_sampling(
        loaded.model.source,
        "ddim" if options.ddim_eta and not options.sampler else options.sampler,
        options.steps,
        options.scale,
        negative_prompt=loaded.with_identifier(options.negative_prompt),
        eta=options.ddim_eta,
        spacing=options.spacing,
        guidance_interval=options.guidance_interval,
        deepcache=options.deepcache,
    )
    about = {"model": options.ckpt, **base_options, **parts.facts()}
    return Drawing(loaded, sampling, height, width, about)


def plan(options: argparse.Namespace, prompts: list[str]) -> list[Picture]:
    """All pictures, batch by batch, each batch with one prompt; a repeated prompt continues its seeds."""
    noise_seed = options.seed if options.fixed_code else options.noise_seed
    each = options.n_iter * options.n_samples
    seen: Counter[str] = Counter()
    pictures = []
    for prompt in prompts:
        first = options.seed + each * seen[prompt]
        seen[prompt] += 1
        for k in range(each):
            noise = None if noise_seed is None else noise_seed + k % options.n_samples
            pictures.append(Picture(prompt, first + k, noise))
    return pictures


def settings_of(image: Path) -> dict[str, object]:
    """Options to draw `image`, a single picture or a grid, again from the facts in it.

    Numbers remain text, for the command line to check. Raises UserError if a fact is missing.
    """
    facts = png_text(image)
    if "scale" in facts:  # written before spacings had names
        facts = {"guidance_scale": facts["scale"], "spacing": "base", **facts}
    if missing := [key for key in ("prompt", "seed", "sampler", "steps", "model") if key not in facts]:
        raise UserError(
            f"--from-image {image}: it does not say its {missing[0]}, so it cannot be drawn again"
        )
    is_grid = "prompts" in facts
    settings: dict[str, object] = {"n_samples": "1", "skip_grid": not is_grid, "skip_save": is_grid}
    settings |= {option: facts[key] for key, option in OPTIONS.items() if key in facts}
    settings["prompts"] = _texts("prompts", facts, image) if is_grid else [facts["prompt"]]
    settings["drawn_parts"] = Parts(
        **{
            name: [word_near(word, image) for word in _texts(key, facts, image)]
            for name, key in FACTS.items()
            if key in facts
        }
    )
    settings["ckpt"] = str(find_near(facts["model"], image))
    settings["drawn_with"] = (settings["ckpt"], facts.get("weights"))
    settings |= {key: facts[key] == "True" for key in ("use_ema", "zero_terminal_snr") if key in facts}
    return settings


def _texts(key: str, facts: Mapping[str, str], image: Path) -> list[str]:
    try:
        texts = json.loads(facts[key])
    except ValueError as error:
        raise UserError(f"--from-image {image}: its {key} cannot be read ({error})") from error
    return [str(text) for text in texts] if isinstance(texts, list) else [str(texts)]
