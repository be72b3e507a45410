"""A run's config, from command-line options."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm import config as configs
from ldm.errors import UserError
from ldm.files import PROJECT
from ldm.foreign import TRAINER_SETTINGS
from ldm.formats.checkpoint_files import CONFIG
from ldm.training import run_folder
from ldm.values import Config

PATHS = ("base", "vae", "data_root", "reg_data_root")
"""Settings that are paths, anywhere in a config."""


def read_config(options: argparse.Namespace) -> Config:
    """The run's config: the merged YAML files or the resumed run's own, with the command line's overrides."""
    if options.resume:
        if options.base:
            raise UserError(
                "--resume takes the run's own config: leave --base out, and change keys with key.sub=value"
            )
        for option, value in (
            ("--name", options.name),
            ("--postfix", options.postfix),
            ("--logdir", options.logdir),
            ("--scale_lr", options.scale_lr),
        ):
            if value:
                raise UserError(f"--resume continues a run in its own folder, as it was: leave {option} out")
        config = configs.read_plain(run_folder.folder_of(Path(options.resume)) / CONFIG)
        config = configs.override(config, overrides_of(options), options.trust)
    else:
        config = configs.load_config(options.base, overrides_of(options), options.trust)
        if options.scale_lr:
            scale_learning_rates(config)
    refuse_single_subject_options(config, options)
    make_paths_absolute(config)
    return config


def refuse_single_subject_options(config: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Raise UserError for an option about a single subject if the config lists `concepts`."""
    names = ("data_root", "class_word", "reg_data_root")
    asked = {word.partition("=")[0] for word in options.overrides}
    given = [(name, f"--{name}") for name in names if getattr(options, name) is not None]
    given += [(name, key) for name in names if (key := f"data.params.{name}") in asked]
    if given and config["data"].get("params", {}).get("concepts"):
        name, option = given[0]
        raise UserError(
            f"{option} is for one subject, but the config has data.params.concepts: for the first, set"
            f" data.params.concepts.0.{name}=..."
        )


def make_paths_absolute(node: Any) -> None:
    """Make paths relative to the working folder absolute, for resumes from another; the project's stay relative."""
    for key, value in node.items() if isinstance(node, dict) else ():
        is_here = key in PATHS and isinstance(value, str) and Path(value).exists()
        if is_here and Path(value).absolute() != PROJECT / value:
            node[key] = str(Path(value).absolute())
        make_paths_absolute(value)
    for item in node if isinstance(node, list) else ():
        make_paths_absolute(item)


def scale_learning_rates(config: Config) -> None:
    """`--scale_lr`: multiply the config's learning rates by the samples per optimizer step."""
    trainer, params = config["lightning"]["trainer"], config["model"]["params"]
    factor = device_count(trainer) * trainer.get("num_nodes", 1) * trainer.get("accumulate_grad_batches", 1)
    factor *= config["data"]["params"]["batch_size"]
    of_tuning = (params.get("tuning") or {}).get("params") or {}
    for place, key in (
        (params, "learning_rate"),
        (params, "text_encoder_learning_rate"),
        (of_tuning, "token_learning_rate"),
    ):
        rates = place.get(key)
        if isinstance(rates, dict):
            place[key] = {name: rate * factor for name, rate in rates.items()}
        elif rates:
            place[key] = rates * factor


def device_count(settings: Config) -> int:
    """Devices per node, as Lightning counts them: `devices` may also be -1 for all, or a list."""
    chosen = {key: settings[key] for key in ("accelerator", "devices") if key in settings}
    try:
        return pl.Trainer(**chosen, **TRAINER_SETTINGS).num_devices
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"config lightning.trainer: {error}") from error


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The ancestor's options as config overrides, followed by explicit overrides, which win."""
    keys = {
        "seed": options.seed,
        "model.params.base": options.actual_resume,
        "data.params.data_root": options.data_root,
        "data.params.reg_data_root": options.reg_data_root,
        "data.params.class_word": options.class_word,
    }
    # Quoted, so that a folder named 2024 or "a: b" remains text.
    overrides = [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items() if value is not None
    ]
    if options.gpus is not None:
        if options.gpus == "0":
            raise UserError(
                "--gpus 0: write '0,' for the first GPU, '1' for one GPU, or lightning.trainer.accelerator=cpu for none"
            )
        devices = f"[{options.gpus.strip(',')}]" if "," in options.gpus else options.gpus
        overrides += ["lightning.trainer.accelerator=gpu", f"lightning.trainer.devices={devices}"]
    if options.no_test:
        overrides += [f"lightning.callbacks.{name}.params.at_end=false" for name in ("validation", "samples")]
    return overrides + options.overrides
