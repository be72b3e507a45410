"""Lightning's loggers: continuing their curves after a resume, and logging to all of them."""

import re
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger

from ldm.errors import UserError
from ldm.files import replacing
from ldm.targets import instantiate_from_config

WANDB_ID = Path("configs", "wandb-id.txt")


def build_logger(logger: Mapping[str, Any], run: Path, step: int | None, trust: Sequence[str] = ()) -> Logger:
    """The logger of a config's `lightning.logger` for the run folder `run`; step: resumed from, or None."""
    kind = logger["target"].rpartition(".")[2]
    extra: dict[str, Any] = {"save_dir": str(run)}
    if kind == "WandbLogger":
        extra |= {"id": wandb_id(run), "resume": "allow"}
        import wandb

        extra["settings"] = wandb.Settings(symlink=False)  # a run folder may not contain links
    if kind == "TensorBoardLogger" and step is not None:
        extra["purge_step"] = step + 1  # hides logged steps that are now repeated
    return instantiate_from_config(logger, trust, **extra)


def wandb_id(run: Path) -> str:
    """The run's id at W&B, drawn at its first start and kept in the run folder."""
    path = run / WANDB_ID
    if not path.is_file():
        with replacing(path) as temporary:
            temporary.write_text(uuid.uuid4().hex[:12])
    run_id = path.read_bytes()[:100].decode(errors="replace").strip()
    if not re.fullmatch(r"[\w-]{1,64}", run_id):
        raise UserError(
            f"{path} is not the id of a W&B run: restore it, or remove it to start a new run there"
        )
    return run_id


def log_metrics(trainer: Trainer, metrics: Mapping[str, float], step: int) -> None:
    """Log numbers to every logger."""
    each_logger(trainer, lambda logger: logger.log_metrics(dict(metrics), step=step))


def log_image(trainer: Trainer, name: str, image: Image.Image) -> None:
    """Log `image` to every logger that takes images: TensorBoard and W&B."""

    def log(logger: Any) -> None:
        kind = type(logger).__name__
        if kind == "TensorBoardLogger":
            logger.experiment.add_image(name, np.asarray(image), trainer.global_step, dataformats="HWC")
        elif kind == "WandbLogger":
            logger.log_image(name, [image], step=trainer.global_step)

    each_logger(trainer, log)


def log_config(trainer: Trainer, config: dict[str, Any]) -> None:
    """Log the run's config to every logger."""
    each_logger(trainer, lambda logger: logger.log_hyperparams(config))


def flush_loggers(trainer: Trainer) -> None:
    """Flush all loggers while errors are still caught: Lightning closes them without catching any."""
    each_logger(trainer, lambda logger: getattr(logger.experiment, "flush", int)())


def close_loggers(trainer: Trainer) -> None:
    """Finish the W&B run: it belongs to the process, and the process's next logger would continue it."""
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.finish()


def each_logger(trainer: Trainer, act: Callable[[Any], Any]) -> None:
    """`act(logger)` on the first process; a logger that cannot write is removed, with a warning."""
    for logger in list(trainer.loggers) if trainer.is_global_zero else ():
        try:
            act(logger)
        except (OSError, ValueError) as error:  # Lightning turns TensorBoard's OSError into a ValueError
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            warnings.warn(
                f"step {trainer.global_step}: {type(logger).__name__} cannot write ({error.__cause__ or error}), so its"
                " curves end here; metrics.jsonl continues",
                stacklevel=2,
            )
