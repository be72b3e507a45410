"""From a config to a run's objects: data module, model and trainer."""

import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import diffusers
import pytorch_lightning as pl
import transformers
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm.errors import UserError
from ldm.foreign import TRAINER_SETTINGS
from ldm.formats.modules import weights_on
from ldm.targets import get_class, instantiate_from_config, parameters
from ldm.training.callbacks import build_callbacks
from ldm.training.checkpoint import AtomicCheckpointIO, Checkpointing
from ldm.training.launch import Launch
from ldm.training.precision import precision_options
from ldm.training.signals import Signals
from ldm.training.step_callback import samples_per_step
from ldm.values import Config, is_provided


class Parts(NamedTuple):
    """The objects that a config builds."""

    data: pl.LightningDataModule
    model: pl.LightningModule
    trainer: pl.Trainer


def build(
    config: Config,
    folder: Path,
    trust: Sequence[str] = (),
    signals: Signals | None = None,
    launch: Launch | None = None,
) -> Parts:
    """The data module, model and trainer of `config`; the trainer writes into `folder`.

    trust: other packages whose classes may be built. signals: passed to the callbacks that need it. launch: if
    given, the trainer must match the running processes.
    """
    lightning = config["lightning"]
    data = instantiate_from_config(config["data"], trust)
    callbacks = build_callbacks(lightning["callbacks"], trust, [signals] if signals else [])
    if not any(isinstance(callback, Checkpointing) for callback in callbacks):
        warnings.warn(
            "no callback saves checkpoints: an interrupted run starts from the beginning", stacklevel=2
        )
    io = AtomicCheckpointIO({"config": config})
    trainer = build_trainer(lightning["trainer"], folder, callbacks, io, launch)
    # A model gets its subjects from the data, so that no config repeats them.
    hints = parameters(get_class(config["model"]["target"], trust))
    provided = {key: getattr(data, key) for key, hint in hints.items() if is_provided(hint)}
    with weights_on(trainer.strategy.root_device):
        model = instantiate_from_config(config["model"], trust, **provided)
    if hasattr(model, "check"):
        model.check(data, trainer)
    for callback in callbacks:
        if hasattr(callback, "check"):
            callback.check(model)
    io.facts["samples_per_step"] = samples_per_step(data, trainer)
    io.facts["data_fingerprint"] = getattr(data, "fingerprint", None)
    return Parts(data, model, trainer)


def build_trainer(
    settings: Config,
    folder: Path,
    callbacks: list[pl.Callback],
    io: AtomicCheckpointIO,
    launch: Launch | None,
) -> pl.Trainer:
    """Lightning's Trainer with `settings`, the config's `lightning.trainer`, and the project's own plugins."""
    precision, precision_plugins = precision_options(settings)
    try:
        trainer = pl.Trainer(
            **{**settings, "precision": precision},
            default_root_dir=folder,
            callbacks=callbacks,
            plugins=[io, *precision_plugins, *([launch.environment] if launch else [])],
            **TRAINER_SETTINGS,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"config lightning.trainer: {error}") from error
    if launch:
        launch.check(trainer)
    return trainer


def checkpoint_facts(parts: Parts) -> Config:
    """The facts stored in every checkpoint of this start beside its state: config, fingerprints."""
    facts = dict(parts.trainer.strategy.checkpoint_io.facts)
    parts.model.on_save_checkpoint(facts)
    return facts


def quiet() -> None:
    """Silence libraries' messages about choices made on purpose here."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    for pattern in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*module\\(s\\) in eval mode.*",
    ):
        warnings.filterwarnings("ignore", pattern)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
