"""Lightning's loggers: how they go on with a run's curves after a resume, and what they are handed."""

import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Trainer

from ldm.files import replacing

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


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Hand numbers to every logger."""
    each_logger(trainer, lambda logger: logger.log_metrics(dict(metrics), step=step))


def log_image(trainer: Trainer, name: str, image: Image.Image) -> None:
    """Hand `image` to every logger that takes images: TensorBoard and W&B."""

    def log(logger: Any) -> None:
        kind = type(logger).__name__
        if kind == "TensorBoardLogger":
            logger.experiment.add_image(name, np.asarray(image), trainer.global_step, dataformats="HWC")
        elif kind == "WandbLogger":
            logger.log_image(name, [image], step=trainer.global_step)

    each_logger(trainer, log)


def log_config(trainer: Trainer, config: dict[str, Any]) -> None:
    """The run's configuration, to every logger."""
    each_logger(trainer, lambda logger: logger.log_hyperparams(config))


def flush_loggers(trainer: Trainer) -> None:
    """Have what was logged written, before Lightning closes the loggers and lets their errors through."""
    each_logger(trainer, lambda logger: getattr(logger.experiment, "flush", int)())


def close_loggers(trainer: Trainer) -> None:
    """End the run at W&B: it is the process's own, and the next logger in this process would go on with it."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.finish()


def each_logger(trainer: Trainer, act: Callable[[Any], None]) -> None:
    """`act(logger)` on the first process; a logger that cannot write is left out from then on, with a warning."""
    for logger in list(trainer.loggers) if trainer.is_global_zero else ():
        try:
            act(logger)
        except (OSError, ValueError) as error:  # Lightning makes a ValueError of TensorBoard's OSError
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            warnings.warn(
                f"step {trainer.global_step}: {type(logger).__name__} cannot write ({error.__cause__ or error}), so its"
                " curves end here; metrics.jsonl goes on",
                stacklevel=2,
            )
