"""Lightning's loggers: how they go on with a run's curves after a resume, and what they are handed."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Trainer

from ldm.formats.atomic import replacing

WANDB_ID = Path("configs", "wandb-id.txt")


def logger_options(target: str, run: Path, step: int | None) -> dict[str, Any]:
    """Keywords for the logger class `target` of the run folder `run`; step: the one resumed from, if any."""
    options: dict[str, Any] = {"save_dir": str(run)}
    kind = target.rpartition(".")[2]
    if kind == "WandbLogger":
        options |= {"id": wandb_id(run), "resume": "allow"}
    if kind == "TensorBoardLogger" and step is not None:
        options["purge_step"] = step + 1  # hides the steps that were logged and are now taken again
    return options


def wandb_id(run: Path) -> str:
    """The run's name at W&B, drawn at its first start and kept with it."""
    if not (run / WANDB_ID).is_file():
        with replacing(run / WANDB_ID) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    return (run / WANDB_ID).read_text().strip()


def log_image(trainer: Trainer, name: str, image: Image.Image) -> None:
    """Hand `image` to every logger that takes images: TensorBoard and W&B."""
    for logger in trainer.loggers:
        kind = type(logger).__name__
        if kind == "TensorBoardLogger":
            logger.experiment.add_image(name, np.asarray(image), trainer.global_step, dataformats="HWC")
        elif kind == "WandbLogger":
            logger.log_image(name, [image], step=trainer.global_step)


def log_config(loggers: Sequence[Any], config: dict[str, Any]) -> None:
    """The run's configuration, to every logger."""
    for logger in loggers:
        logger.log_hyperparams(config)
