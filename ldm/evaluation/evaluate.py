"""One evaluation, from its settings to its pages (`scripts/evaluate.py`)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ldm.concepts import Learned
from ldm.console import progress_bar
from ldm.data.png import png_text
from ldm.devices import choose_device, choose_dtype
from ldm.diffusion.sampling import Sampling
from ldm.errors import UserError
from ldm.evaluation.features import load_networks, load_others
from ldm.evaluation.folder import read_folder
from ldm.evaluation.protocol import Item, fill_in, plan, prompt_set
from ldm.evaluation.references import Subject, subject_in_folder, subject_of_run
from ldm.evaluation.results import table, write
from ldm.evaluation.scores import About, Networks, Result, score
from ldm.evaluation.settings_file import keep_to, of_evaluation
from ldm.evaluation.statistics import Estimate
from ldm.files import PROJECT, check_writable, find
from ldm.formats.checkpoint_files import run_of
from ldm.formats.knowledge import advised_sampling
from ldm.methods.draw import Drawing, Picture, batches, save_picture
from ldm.methods.load import LoadedModel, load_for_sampling
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.memory import pictures_at_once

EMBEDDED_SIDE = 64
"""Side of the embedded world's pictures, px."""

ADVISED = ("sampler", "steps", "guidance_scale")
"""Settings of the section `sampling` that a base may advise."""

RESULTS = ("metrics.json", "concepts.json", "*/*.png")
"""What is in a folder once there is something of an evaluation, of one subject or several."""

SHORTCUTS = ("guidance_interval", "deepcache")
"""Settings of the section `sampling` that draw faster; none by default."""


@dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation. Exactly one of `ckpt` and `images` is given."""

    config: Mapping[str, Any]
    """Keys and values of `ldm.evaluation.settings.EvaluationSettings`."""
    ckpt: Path | None = None
    """A run, a checkpoint, an exported model or a base, whose images are drawn here."""
    images: Path | None = None
    """A folder of images made elsewhere."""
    class_images: Path | None = None
    """With `images`: a folder of images of the bare class."""
    real: Path | None = None
    """Folder of the subject's photographs; None for the run's."""
    hold_out: int = 0
    """How many of the images in `real`, the last ones, are the reference; 0 for all."""
    class_word: str | None = None
    """The subject's class noun; None for the run's."""
    identifier: str | None = None
    """The word or words for the subject; None for the run's."""
    place: int = 0
    """Which of a run's subjects is measured, by its place in the config's list."""
    prompt_noun: str | None = None
    """Noun in the prompts for drawing, '' for none; None for the class word."""
    outdir: Path | None = None
    """None for `evaluation` in the run, or `outputs/evaluation`."""
    with_base: bool = True
    """Of a run: whether its untrained base is measured too, as the row to compare with."""
    precision: str | None = None
    compile: bool = False
    """Whether the UNet's transformer blocks are compiled."""
    device: str | None = None
    base_options: Mapping[str, object] = field(default_factory=dict)
    """Options for reading a base, as in `load_for_sampling`."""
    trust: Sequence[str] = ()
    """Other packages whose classes may be built."""

    @property
    def run(self) -> Path | None:
        """The run that is evaluated, if any."""
        return run_of(find(self.ckpt)) if self.ckpt else None

    @property
    def out(self) -> Path:
        """Folder of the results."""
        return self.outdir or (self.run / "evaluation" if self.run else Path("outputs", "evaluation"))


def load_measuring(evaluation: Evaluation) -> tuple[Networks, LoadedModel | None]:
    """The networks that measure, and the model whose pictures they look at, where it is to be drawn here."""
    for folder in (evaluation.out, evaluation.out / "subject", evaluation.out / "class"):
        check_writable(folder)
    config = evaluation.config["networks"]
    device = choose_device(evaluation.device)
    networks = Networks(*load_networks(config, device), config["diversity"], load_others(config, device))
    if evaluation.ckpt is None:
        return networks, None
    loaded = load_for_sampling(evaluation.ckpt, device, evaluation.base_options, evaluation.trust)
    refuse_embedded_networks(networks, loaded.model.native_size)
    loaded.model.for_sampling(device, choose_dtype(evaluation.precision, device), evaluation.compile)
    return networks, loaded


def evaluate(evaluation: Evaluation, networks: Networks, loaded: LoadedModel | None) -> str:
    """Draw or find the images, score them, write the result; returns the table and where the page is.

    networks, loaded: as `load_measuring` gives them; of the model's subjects, the first is measured.
    """
    config, out = evaluation.config, evaluation.out
    base = None
    if loaded:
        subject, items, about = drawn_images(evaluation, loaded)
        if evaluation.with_base and loaded.read_base:
            base = metrics_of_base(evaluation, loaded.read_base, subject, networks)
    else:
        subject, items, about = given_images(evaluation)
    measured, rows = score(items, subject.references, networks, config["sampling"]["images_per_prompt"], out)
    about |= {
        "class_word": subject.class_word,
        "prompts": prompt_set(config, subject.class_word) if evaluation.ckpt else "as given",
        "real_images": {name: [path.name for path in paths] for name, paths in subject.references.items()},
        "note": subject.note,
    }
    result: Result = {"about": about, **measured}
    if base is not None:
        result["base"] = base
    published = [row for row in config["published"] if row["table"] != 4]  # the ablation is the benchmark's
    write(out, result, rows, next(iter(subject.references.values())), published)
    return f"{table(result, published)}\n{subject.note}\n{out / 'report.html'}"


def keep_to_settings(evaluation: Evaluation, loaded: LoadedModel | None, subjects: Sequence[Subject]) -> None:
    """Raise UserError if the folder of the results has others; see `settings_file.keep_to`."""
    paths = {name: getattr(evaluation, name) for name in ("images", "class_images")}
    settings = {
        "weights": loaded.weights if loaded else None,
        "precision": str(loaded.model.unet.dtype) if loaded else None,
        "base_options": dict(evaluation.base_options),
        "subjects": [learned.placeholder for learned in loaded.subjects] if loaded else None,
        "identifier": evaluation.identifier,
        "class_words": [subject.class_word for subject in subjects],
        "photographs": [
            str(path.resolve()) for one in subjects for path in next(iter(one.references.values()))
        ],
        "prompt_noun": evaluation.prompt_noun,
        **{name: str(path.resolve()) for name, path in paths.items() if path is not None},
        **of_evaluation(evaluation.config),
    }
    keep_to(settings, evaluation.out, RESULTS, "an evaluation")


def drawn_images(evaluation: Evaluation, loaded: LoadedModel) -> tuple[Subject, list[Item], About]:
    """Subject, the protocol's images drawn by `loaded`, and facts about the model."""
    learned = loaded.subjects[0] if loaded.subjects else None
    if evaluation.identifier:
        learned = replace(learned or Learned(""), identifier=evaluation.identifier)
        loaded = replace(loaded, subjects=(learned,))
    subject = find_subject(evaluation, learned.class_word if learned else None)
    items = plan(
        evaluation.config,
        subject.class_word,
        evaluation.out,
        evaluation.prompt_noun,
        learned=learned is not None,
    )
    keep_to_settings(evaluation, loaded, [subject])
    draw(loaded, items, evaluation)
    about: About = {
        "model": str(evaluation.ckpt),
        "weights": loaded.weights,
        "step": loaded.step,
        "sampling": sampling_facts(loaded, evaluation),
        "identifier": learned.identifier if learned else None,
    }
    return subject, items, about


def metrics_of_base(
    evaluation: Evaluation,
    read_base: Callable[[], LatentDiffusion],
    subject: Subject,
    networks: Networks,
) -> Mapping[str, Estimate]:
    """The metrics of the model before it was trained, on the same prompts without [V], from the same seeds."""
    model, device = read_base().eval(), choose_device(evaluation.device)
    base = LoadedModel(model, weights=model.fingerprint)
    model.for_sampling(device, choose_dtype(evaluation.precision, device), evaluation.compile)
    # Beside the run's own images, which can be read from their folder again.
    folder = evaluation.out.with_name(f"{evaluation.out.name}-base")
    items = plan(evaluation.config, subject.class_word, folder, evaluation.prompt_noun, learned=False)
    draw(base, items, evaluation)
    count = evaluation.config["sampling"]["images_per_prompt"]
    result, _ = score(items, subject.references, networks, count, folder)
    return result["metrics"]


def given_images(evaluation: Evaluation) -> tuple[Subject, list[Item], About]:
    """Subject, the images of `evaluation.images`, and facts about them."""
    assert evaluation.images is not None
    subject = find_subject(evaluation, None)
    bare = fill_in(evaluation.config["class_prompt"], subject.class_word)
    items = read_folder(evaluation.images, evaluation.identifier, evaluation.class_images, bare)
    keep_to_settings(evaluation, None, [subject])
    about: About = {"images": str(evaluation.images), "identifier": evaluation.identifier, "sampling": None}
    return subject, items, about


def find_subject(evaluation: Evaluation, learned_class: str | None) -> Subject:
    """The subject, from the settings, the model (`learned_class`) or the run, in this order."""
    class_word = evaluation.class_word or learned_class
    if evaluation.real:
        return subject_in_folder(evaluation.real, evaluation.hold_out, evaluation.run, class_word)
    return subject_of_run(evaluation.run, class_word, evaluation.place)


def refuse_embedded_networks(networks: Networks, side: int) -> None:
    """Raise UserError for the embedded networks with a photographic model: they know only the embedded world.

    side: of the model's images, px.
    """
    embedded = [
        net for net in (networks.dino, networks.clip) if PROJECT / "assets" in net.folder.resolve().parents
    ]
    if embedded and side > 2 * EMBEDDED_SIDE:
        raise UserError(
            f"networks: {embedded[0].facts['network']} knows only the embedded world, but this model draws"
            f" {side} px; add --config configs/stable-diffusion/evaluation.yaml"
        )


def sampling_of(loaded: LoadedModel, evaluation: Evaluation) -> Sampling:
    """How the images are drawn: what the config leaves open is the base's own advice."""
    settings = {key: evaluation.config["sampling"][key] for key in (*ADVISED, *SHORTCUTS)}
    return advised_sampling(loaded.model.source, **settings)


def sampling_facts(loaded: LoadedModel, evaluation: Evaluation) -> dict[str, object]:
    """The config's section `sampling` with the values that were used."""
    sampling = sampling_of(loaded, evaluation)
    return {**evaluation.config["sampling"], **{key: getattr(sampling, key) for key in ADVISED}}


def draw(loaded: LoadedModel, items: Sequence[Item], evaluation: Evaluation) -> None:
    """Draw and save those of `items` that do not exist yet with the same facts in their PNGs."""
    side, size = loaded.model.native_size, evaluation.config["sampling"]["batch_size"]
    sampling = sampling_of(loaded, evaluation)
    loaded.model.passes(sampling)
    about = {"model": str(evaluation.ckpt), **evaluation.base_options}
    drawing = Drawing(loaded, sampling, side, side, about)

    def picture(item: Item) -> Picture:
        assert item.seed is not None
        return Picture(loaded.with_identifier(item.prompt), item.seed)

    def facts(item: Item) -> dict[str, str]:
        return {**drawing.facts(picture(item)), "kind": item.kind, "text": item.text}

    missing = [
        item for item in items if not (item.path.is_file() and is_same(png_text(item.path), facts(item)))
    ]
    done = len(items) - len(missing)
    if size == "auto" and missing:
        size = pictures_at_once(loaded.model, side, side)
    with progress_bar(len(items), "sampling", "image", initial=done) as bar:
        for batch in batches(missing, size):
            for item, image in zip(batch, drawing.draw([picture(item) for item in batch]), strict=True):
                save_picture(image, item.path, facts(item))
            bar.update(len(batch))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # for the feature networks


def is_same(found: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether an image was drawn as it would be now; the model's path does not matter."""
    return {**found, "model": ""} == {**wanted, "model": ""}
