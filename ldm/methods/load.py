"""Loads any model that can be sampled: a run, a checkpoint, an exported folder, a base."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ldm.concepts import Learned, fill_in_identifiers
from ldm.devices import set_tf32
from ldm.errors import UserError
from ldm.files import find, find_near, refuse_links
from ldm.formats.base import load_vae, vae_files
from ldm.formats.checkpoint_files import CONFIG, newest_checkpoint, run_of
from ldm.formats.custom_diffusion import DELTAS_FILE
from ldm.formats.described import described
from ldm.formats.embeddings import EMBEDDINGS_FILE
from ldm.formats.fingerprint import file_hash, files_fingerprint
from ldm.formats.lora import LORA_FILE
from ldm.formats.modules import weights_on
from ldm.formats.network_configs import refuse_other_latents
from ldm.formats.run_checkpoint import LearnedSubject
from ldm.formats.safe_loading import load_checkpoint
from ldm.formats.subject import read_subject
from ldm.methods.tuning import tuning_of
from ldm.models.latent_diffusion import LatentDiffusion

PART_FILES = {"--lora": LORA_FILE, "--embeds": EMBEDDINGS_FILE, "--delta": DELTAS_FILE}
"""What a folder that is only a part of a model holds, by the option that adds it to its base."""


@dataclass
class LoadedModel:
    """A model to sample, with its learned subjects."""

    model: LatentDiffusion
    subjects: Sequence[Learned] = ()
    step: int | None = None
    config: Mapping[str, Any] | None = None
    """The run's config, if the model is a run's."""
    weights: str = ""
    """Hash of the files of the weights."""
    read_base: Callable[[], LatentDiffusion] | None = None
    """Reads the base again, if the model is a run's."""
    added: Sequence[str] = ()
    """Options, with file names, that have added parts to the model."""

    def with_identifier(self, prompt: str) -> str:
        """`prompt` with placeholders replaced by learned identifiers. Raises UserError if there are none."""
        return fill_in_identifiers(prompt, self.subjects)


def load_for_sampling(
    path: str | Path,
    device: torch.device | str = "cpu",
    base_options: Mapping[str, Any] | None = None,
    trust: Sequence[str] = (),
) -> LoadedModel:
    """The model at `path`: a run folder (its newest checkpoint), a run's checkpoint, or any base.

    device: for the weights. base_options: keywords of `LatentDiffusion.from_base`; a run has its own and accepts only
    `vae` here, to replace its own. trust: other packages whose tunings may be built (`--trust`).
    Raises UserError if `path` is none of these, if a run's base is not the one it was trained on, or if a run folder,
    which may be a stranger's, contains links.
    """
    base_options = dict(base_options or {})
    set_tf32(False)
    path = find(path)
    if run := run_of(path):
        refuse_links(run)
    if (path / "checkpoints").is_dir() or (path / CONFIG).is_file():
        path = newest_checkpoint(path)
    with weights_on(device):
        if path.is_file():
            content = load_checkpoint(path)
            if "base_fingerprint" in content:
                return _load_run(path, content, base_options, trust)
        options = [f"{option} {path}" for option, name in PART_FILES.items() if os.path.isfile(path / name)]
        if options and not os.path.exists(path / "model_index.json"):
            raise UserError(f"{path} is a part of a model: name its base, and add {' '.join(options)}")
        about = read_subject(path)
        model = LatentDiffusion.from_base(path, **{"clip_skip": about.clip_skip, **base_options}).eval()
    return LoadedModel(model, about.learned(), about.step, weights=model.fingerprint)


def _load_run(
    path: Path, content: dict[str, Any], base_options: dict[str, Any], trust: Sequence[str]
) -> LoadedModel:
    """The base of a run's checkpoint, with the trained weights restored."""
    vae = base_options.pop("vae", None)
    if base_options:
        raise UserError(
            f"checkpoint {path} has its own settings for reading its base: leave out --{min(base_options)}"
        )
    run = described(LearnedSubject, content, f"checkpoint {path}")
    params = run.config.model.params
    read_base = partial(LatentDiffusion.from_base, find_near(run.base, path), **params.base_options())
    model = read_base()
    if model.fingerprint != run.base_fingerprint:
        raise UserError(
            f"checkpoint {path}: {run.base} is not the base it was trained on; restore that base there"
        )
    tuning = tuning_of(content["config"]["model"]["params"], trust)
    tuning.attach(model)
    learned = {key.removeprefix("model."): value for key, value in run.state_dict.items()}
    tuning.restore(model, learned, f"checkpoint {path}")
    weights = file_hash(path)
    if vae is not None:
        model.vae = load_vae(vae, model.components().family).eval().requires_grad_(False)
        refuse_other_latents(model.vae.config, model.unet.config, f"--vae {vae}")
        weights = files_fingerprint([("run", path), *vae_files(vae)])
    return LoadedModel(model.eval(), run.learned(), run.global_step, content["config"], weights, read_base)
