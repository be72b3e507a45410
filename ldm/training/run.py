"""A run from its options to its exported model: config, objects, run folder, fit, export."""

import argparse
import contextlib
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import EXIT_RESUME_ME, UserError


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Everything after parsing: config, objects, run folder, fit, export. What can be refused is, before any file."""
    from ldm.training import resume, run_folder, signals

    quiet()
    if signals.is_started_process():
        signals.end_with_parent()
    config = read_config(options)
    if not options.train:
        return check(config, options)
    first, resumed = run_folder.is_first_process(), Path(options.resume) if options.resume else None
    handlers = signals.Signals()
    with contextlib.ExitStack() as held:
        if resumed or not first:
            held.enter_context(handlers)  # from here on there is a run to go on with
        folder, state = None, {}
        if first and resumed:
            folder = run_folder.folder_of(resumed)
            held.enter_context(run_folder.lock(folder))
            checkpoint, state = resume.state_of(resumed)
        elif first:
            subject = config["data"].get("params", {}).get("data_root")
            name = run_folder.run_name(subject, options.name or Path(options.base[0]).stem, options.postfix)
            folder = run_folder.new_folder(options.logdir, name)
        folder, step = run_folder.share(folder, state.get("global_step"))
        data, model, trainer = build(config, folder, options.trust)
        if first and resumed:
            changes = resume.changes_since(state, identity(model, trainer), options.trust)
            resume.refuse(changes, folder, options.accept_changes)
        if is_finished(step, folder, model, trainer):
            return 0
        if first and resumed:
            resume.go_on_from(checkpoint, folder / "checkpoints")
            run_folder.remove_temporaries(folder)
            run_folder.write_record(folder, config, argv, resumed_from=step, accepted_changes=changes)
        elif first:
            run_folder.make(folder)
            held.enter_context(run_folder.lock(folder))
            run_folder.write_record(folder, config, argv)
            held.enter_context(handlers)
        trainer.callbacks.insert(0, handlers)
        return train(config, folder, step, data, model, trainer, options.trust)


def is_finished(step: int | None, folder: Path, model: Any, trainer: Any) -> bool:
    """Whether nothing is left to do for a run whose newest checkpoint is of `step`; says so where it is trained."""
    if step is None or step < trainer.max_steps:
        return False
    exported = hasattr(model, "exported_step") and model.exported_step(folder) == step
    if trainer.is_global_zero:
        print(
            f"run {folder} is finished at step {step} of {trainer.max_steps}"
            + (": " if exported else "; its model is written once more: ")
            + f"--resume {folder} lightning.trainer.max_steps={2 * step} would train it further"
        )
    return exported


def read_config(options: argparse.Namespace) -> dict[str, Any]:
    """The run's config: merged YAMLs, or the resumed run's own; then the command line's changes."""
    from ldm import config as configs
    from ldm.training.run_folder import CONFIG, folder_of

    if options.resume:
        if options.base:
            raise UserError(
                "--resume takes the run's own config: leave --base out, and change keys with key.sub=value"
            )
        config = configs.read_plain(folder_of(Path(options.resume)) / CONFIG)
        return configs.override(config, overrides_of(options), options.trust)
    config = configs.load_config(options.base, overrides_of(options), options.trust)
    if options.scale_lr:
        scale_learning_rates(config)
    return config


def scale_learning_rates(config: dict[str, Any]) -> None:
    """`--scale_lr`: learning rates times the samples an optimizer step averages over, kept so in the run's config."""
    trainer, params = config["lightning"]["trainer"], config["model"]["params"]
    factor = device_count(trainer) * trainer.get("num_nodes", 1) * trainer.get("accumulate_grad_batches", 1)
    factor *= config["data"]["params"]["batch_size"]
    for key in ("learning_rate", "text_encoder_learning_rate"):
        if params.get(key):
            params[key] *= factor


def device_count(settings: Mapping[str, Any]) -> int:
    """How many devices a node of the run has, as Lightning counts them: `devices` may be -1 for all, or a list."""
    import pytorch_lightning as pl

    from ldm.foreign import TRAINER_SETTINGS

    chosen = {key: settings[key] for key in ("accelerator", "devices") if key in settings}
    try:
        return pl.Trainer(**chosen, **TRAINER_SETTINGS).num_devices
    except (pl.utilities.exceptions.MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"config lightning.trainer: {error}") from error


def overrides_of(options: argparse.Namespace) -> list[str]:
    """The ancestor's options as config overrides, before the free ones, which thus win."""
    keys = {
        "seed": options.seed,
        "model.params.base": options.actual_resume,
        "data.params.data_root": options.data_root,
        "data.params.reg_data_root": options.reg_data_root,
        "data.params.class_word": options.class_word,
    }
    # Quoted, so that a folder called 2024 or "a: b" stays text.
    words = [
        f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in keys.items() if value is not None
    ]
    if options.gpus is not None:
        if options.gpus == "0":
            raise UserError(
                "--gpus 0: write '0,' for the first GPU, '1' for one GPU; lightning.trainer.accelerator=cpu is for none"
            )
        devices = f"[{options.gpus.strip(',')}]" if "," in options.gpus else options.gpus
        words += ["lightning.trainer.accelerator=gpu", f"lightning.trainer.devices={devices}"]
    if options.no_test:
        words += [f"lightning.callbacks.{name}.params.at_end=false" for name in ("validation", "samples")]
    return words + options.overrides


def build(config: dict[str, Any], folder: Path, trust: Sequence[str] = ()) -> tuple[Any, Any, Any]:
    """The data module, model and trainer of `config`; the trainer writes into `folder`."""
    import pytorch_lightning as pl
    from pytorch_lightning.plugins.environments import SLURMEnvironment
    from pytorch_lightning.plugins.precision import MixedPrecision

    from ldm.foreign import TRAINER_SETTINGS
    from ldm.formats.modules import weights_on
    from ldm.targets import instantiate_from_config
    from ldm.training.checkpoint import AtomicCheckpointIO, Checkpointing

    lightning = config["lightning"]
    data = instantiate_from_config(config["data"], trust)
    callbacks = [instantiate_from_config(c, trust) for c in lightning["callbacks"].values() if c]
    if not any(isinstance(callback, Checkpointing) for callback in callbacks):
        warnings.warn(
            "no callback saves checkpoints: a run that is cut off starts from the beginning", stacklevel=2
        )
    settings, io = dict(lightning["trainer"]), AtomicCheckpointIO({"config": config})
    plugins: list[Any] = [io]
    if SLURMEnvironment.detect():
        # Our own handler saves; requeueing is the job script's.
        plugins.append(SLURMEnvironment(auto_requeue=False))
    if (settings.get("accelerator"), settings.get("precision")) == ("cpu", "16-mixed"):
        # Lightning would train in bf16 instead, with a warning and without a gradient scaler.
        plugins.append(MixedPrecision("16-mixed", "cpu"))
        settings["precision"] = None
    try:
        trainer = pl.Trainer(
            **settings,
            default_root_dir=folder,
            callbacks=callbacks,
            plugins=plugins,
            **TRAINER_SETTINGS,
        )
    except (pl.utilities.exceptions.MisconfigurationException, ValueError, TypeError) as error:
        raise UserError(f"config lightning.trainer: {error}") from error
    with weights_on(trainer.strategy.root_device):
        model = instantiate_from_config(config["model"], trust)
    if hasattr(model, "check"):
        model.check(data)
    for callback in callbacks:
        if hasattr(callback, "check"):
            callback.check(model)
    io.stamp["samples_per_step"] = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
    io.stamp["data_fingerprint"] = getattr(data, "fingerprint", None)
    return data, model, trainer


def identity(model: Any, trainer: Any) -> dict[str, Any]:
    """What every checkpoint of this run carries beside its state: config, fingerprints."""
    stamp = dict(trainer.strategy.checkpoint_io.stamp)
    model.on_save_checkpoint(stamp)
    return stamp


def train(
    config: dict[str, Any],
    folder: Path,
    step: int | None,
    data: Any,
    model: Any,
    trainer: Any,
    trust: Sequence[str] = (),
) -> int:
    """Fit, from the checkpoint of `step` where there is one; export the model and say how to sample it."""
    from ldm import processes
    from ldm.formats.checkpoint_files import LAST
    from ldm.targets import instantiate_from_config
    from ldm.training.checkpoint import Checkpointing
    from ldm.training.loggers import close_loggers, log_config, logger_options

    if config["lightning"]["logger"]:
        options = logger_options(config["lightning"]["logger"]["target"], folder, step)
        trainer.loggers = [instantiate_from_config(config["lightning"]["logger"], trust, **options)]
    log_config(trainer, config)
    checkpoint = None if step is None else folder / "checkpoints" / LAST
    try:
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        if not any(
            isinstance(callback, Checkpointing) and callback.stopped for callback in trainer.callbacks
        ):
            if trainer.is_global_zero:
                print(model.export(folder))
            return 0
    except SystemExit as stop:  # a signal, before the first step or while the model was written
        if stop.code != EXIT_RESUME_ME:
            raise
    except RuntimeError as error:
        if not processes.lost_another(error):
            raise
        print(f"another process has died: python main.py --resume {folder} goes on", file=sys.stderr)
        return EXIT_RESUME_ME
    finally:
        close_loggers(trainer)
    if not trainer.is_global_zero:
        return 0  # Lightning would kill the first process for any other code
    print(f"stopped; all is saved: python main.py --resume {folder} goes on", file=sys.stderr)
    return EXIT_RESUME_ME


def check(config: dict[str, Any], options: argparse.Namespace) -> int:
    """`--train false`: build everything, and say what the run would do and take."""
    import tempfile

    from ldm.training.estimate import estimate

    quiet()
    with tempfile.TemporaryDirectory() as folder:
        data, model, trainer = build(config, Path(folder), options.trust)
        print(estimate(data, model, trainer))
    return 0


def quiet() -> None:
    """Silence what Lightning says about choices that were made on purpose here."""
    import logging

    import diffusers
    import transformers
    from tqdm import tqdm

    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    diffusers.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # Through tqdm, so that it does not end up in the middle of a progress bar.
    warnings.showwarning = lambda message, category, *_: tqdm.write(f"warning: {message}", file=sys.stderr)
    for pattern in (
        ".*does not have many workers.*",
        ".*treespec, LeafSpec.*",
        ".*module\\(s\\) in eval mode.*",
    ):
        warnings.filterwarnings("ignore", pattern)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
