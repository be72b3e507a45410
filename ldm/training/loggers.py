"""Lightning's loggers: continuing their curves after a resume, and logging to all of them."""

import re
import sys
import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning import Trainer
from pytorch_lightning.loggers import Logger

from ldm.config import flat
from ldm.data.sheet import picture_of, read_sheet
from ldm.errors import UserError
from ldm.files import replacing
from ldm.targets import instantiate_from_config
from ldm.training.curves import glossary
from ldm.training.rows import read_rows

WANDB_ID = Path("configs", "wandb-id.txt")


def log_in(settings: Mapping[str, Any] | None, resumed: bool = False) -> None:
    """Log in to W&B if `settings`, a config's `lightning.logger`, need it; on a terminal it asks for a key.

    Raises UserError if there is no login, or W&B does not accept it; for a run that is `resumed` it is a warning.
    """
    if not settings or not settings["target"].endswith("WandbLogger"):
        return
    import wandb

    params = settings.get("params") or {}
    mode = "offline" if params.get("offline") else params.get("mode") or wandb.setup().settings.mode
    if mode in ("offline", "disabled", "dryrun"):
        return
    try:
        wandb.login()
    except wandb.Error as error:
        if resumed:
            warnings.warn(f"W&B: {error} The run goes on, perhaps without its curves there", stacklevel=2)
            return
        raise UserError(
            f"W&B: {error} Or set WANDB_MODE=offline, or lightning.logger=null to log nowhere but to metrics.jsonl"
        ) from error


def build_logger(logger: Mapping[str, Any], run: Path, step: int | None, trust: Sequence[str] = ()) -> Logger:
    """The logger of a config's `lightning.logger` for the run folder `run`; step: resumed from, or None."""
    kind = logger["target"].rpartition(".")[2]
    extra: dict[str, object] = {"save_dir": str(run)}
    if kind == "WandbLogger":
        extra |= {"id": wandb_id(run), "resume": "allow"}
        import wandb

        extra["settings"] = wandb.Settings(symlink=False)  # a run folder may not contain links
    if kind == "TensorBoardLogger":
        extra["default_hp_metric"] = False  # the metrics of the hyperparameters are the run's own
        if step is not None:
            extra["purge_step"] = step + 1  # hides logged steps that are now repeated
    built = instantiate_from_config(logger, trust, **extra)
    if kind == "WandbLogger":
        built._wandb_init.pop("anonymous", None)  # Lightning passes it, and W&B warns that it is deprecated
    return built


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
    """Log numbers to every logger; `ldm.training.curves` names and describes them."""

    def log(logger: Logger) -> None:
        if type(logger).__name__ == "TensorBoardLogger":
            from ldm.training.tensorboard import describe

            for name, value in metrics.items():
                describe(logger, name, value, step)
        else:
            logger.log_metrics(dict(metrics), step=step)

    each_logger(trainer, log)


def log_image(trainer: Trainer, name: str, image: Image.Image) -> None:
    """Log `image` to every logger that takes images: TensorBoard and W&B."""

    def log(logger: Logger) -> None:
        kind = type(logger).__name__
        if kind == "TensorBoardLogger":
            logger.experiment.add_image(name, np.asarray(image), trainer.global_step, dataformats="HWC")
        elif kind == "WandbLogger":
            logger.log_image(name, [image], step=trainer.global_step)

    each_logger(trainer, log)


def log_config(trainer: Trainer, config: dict[str, Any]) -> None:
    """Log the run's config to every logger, and to W&B what its curves are."""

    def log(logger: Logger) -> None:
        logger.log_hyperparams(config)
        if type(logger).__name__ == "TensorBoardLogger":
            from ldm.training.tensorboard import begin_hyperparameters

            begin_hyperparameters(logger, flat(config), _measured(config))
        elif type(logger).__name__ == "WandbLogger" and not logger.experiment.notes:
            logger.experiment.notes = glossary()

    each_logger(trainer, log)


def _measured(config: Mapping[str, Any]) -> list[str]:
    """Names of the curves that this config's callbacks measure."""
    callbacks = config["lightning"]["callbacks"]
    names = ["val/subject_loss", "val/drift", "val/score"] if callbacks.get("validation") else []
    return names + (["val/dino", "val/clip_i", "val/clip_t"] if callbacks.get("fidelity") else [])


def flush_loggers(trainer: Trainer) -> None:
    """Flush all loggers while errors are still caught: Lightning closes them without catching any."""
    each_logger(trainer, lambda logger: getattr(logger.experiment, "flush", int)())


def close_loggers(trainer: Trainer) -> None:
    """Finish what was logged: the hyperparameters' end to TensorBoard, a table of samples and the best step to W&B.

    The W&B run belongs to the process, and the process's next logger would continue it.
    """

    def log(logger: Logger) -> None:
        if type(logger).__name__ == "TensorBoardLogger":
            from ldm.training.tensorboard import end_hyperparameters

            end_hyperparameters(logger)
        elif type(logger).__name__ == "WandbLogger":
            folder = Path(trainer.default_root_dir)
            logger.experiment.summary.update(best_of(folder))
            logger.experiment.log({"samples_table": samples_table(folder)})

    each_logger(trainer, log)
    for logger in trainer.loggers if trainer.is_global_zero else ():
        if type(logger).__name__ == "WandbLogger":
            logger.experiment.finish()


def best_of(folder: Path) -> dict[str, float]:
    """The best score of the run's validation and its step, where it has any."""
    rows = read_rows(folder / "validation.jsonl")
    scored = [row for row in rows if row["step"] > 0 and "score" in row]
    best = min(scored, key=lambda row: row["score"], default=None)
    return {"best/score": best["score"], "best/step": best["step"]} if best else {}


def samples_table(folder: Path) -> Any:
    """A W&B table of the run's samples: step, prompt, seed, picture."""
    import wandb

    table = wandb.Table(columns=["step", "prompt", "seed", "image"])
    for path in sorted((folder / "images").glob("step-*.png")):
        sheet, cells, facts = read_sheet(path)
        for cell in cells:
            if cell.seed is not None:
                step = int(facts.get("step", 0))
                table.add_data(step, cell.title, cell.seed, wandb.Image(picture_of(sheet, cell)))
    return table


def failures() -> tuple[type[Exception], ...]:
    """What loggers raise if they cannot write; Lightning turns TensorBoard's OSError into a ValueError."""
    wandb = sys.modules.get("wandb")
    return (OSError, ValueError, wandb.Error) if wandb else (OSError, ValueError)


def each_logger(trainer: Trainer, act: Callable[[Logger], object]) -> None:
    """`act(logger)` on the first process; a logger that cannot write is removed, with a warning."""
    for logger in list(trainer.loggers) if trainer.is_global_zero else ():
        try:
            act(logger)
        except failures() as error:
            trainer.loggers = [other for other in trainer.loggers if other is not logger]
            warnings.warn(
                f"step {trainer.global_step}: {type(logger).__name__} cannot write ({error.__cause__ or error}), so its"
                " curves end here; metrics.jsonl continues",
                stacklevel=2,
            )
