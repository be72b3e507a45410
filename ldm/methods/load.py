"""Any model this project can sample from: a run, a checkpoint, an exported folder, a base."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ldm.concepts import fill_in_identifier
from ldm.devices import set_tf32
from ldm.errors import UserError
from ldm.files import find
from ldm.formats.checkpoint_files import newest_checkpoint
from ldm.formats.modules import weights_on
from ldm.formats.safe_loading import load_checkpoint
from ldm.methods.tuning import tuning_of
from ldm.models.latent_diffusion import LatentDiffusion, read_subject


@dataclass
class LoadedModel:
    """A model to sample, and what [V] and the class are where a subject was learned."""

    model: LatentDiffusion
    identifier: str | None = None
    class_word: str | None = None
    step: int | None = None
    config: Mapping[str, Any] | None = None
    """The run's config, where this is one."""

    def with_identifier(self, prompt: str) -> str:
        """`prompt` with the learned identifier in place of [V]; UserError where there is none."""
        return fill_in_identifier(prompt, self.identifier)


BASE_OPTIONS = ("revision", "variant", "use_ema", "vae", "prediction_type", "clip_skip")
"""Settings of a run's model that say how its base is loaded."""


def load_for_sampling(path: str | Path, device: torch.device | str = "cpu") -> LoadedModel:
    """The model at `path`: a run folder (its newest checkpoint), a run's checkpoint, or any base.

    device: where the weights are read to.
    Raises UserError where nothing fits, or where a run's base is not the one it was trained on.
    """
    set_tf32(False)
    path = find(path)
    if (path / "checkpoints").is_dir():
        path = newest_checkpoint(path)
    with weights_on(device):
        if path.is_file():
            content = load_checkpoint(path)
            if "base_fingerprint" in content:
                return _load_run(path, content)
        model = LatentDiffusion.from_base(path).eval()
    about = read_subject(path)
    return LoadedModel(model, about.get("identifier"), about.get("class_word"), about.get("step"))


def _load_run(path: Path, content: dict[str, Any]) -> LoadedModel:
    """The base of a run's checkpoint with what was trained in its place."""
    params = content["config"]["model"]["params"]
    options = {key: params[key] for key in BASE_OPTIONS if key in params}
    model = LatentDiffusion.from_base(content["base"], **options)
    if model.fingerprint != content["base_fingerprint"]:
        raise UserError(
            f"checkpoint {path}: {content['base']} is not the base it was trained on; give that one's place"
        )
    tuning = tuning_of(params)
    tuning.attach(model)
    learned = {key.removeprefix("model."): value for key, value in content["state_dict"].items()}
    tuning.restore(model, learned, f"checkpoint {path}")
    config = content["config"]
    class_word = config["data"]["params"].get("class_word")
    return LoadedModel(model.eval(), content["identifier"], class_word, content["global_step"], config)
