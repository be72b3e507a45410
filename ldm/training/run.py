"""A run, from command-line options to the exported model: config, objects, run folder, fit, export."""

import argparse
import contextlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import pytorch_lightning as pl
import transformers
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from ldm import config as configs
from ldm import processes
from ldm.errors import DISK_IS_FULL, EXIT_RESUME_ME, ReportedError, UserError, printable, printable_lines, say
from ldm.files import PROJECT
from ldm.foreign import TRAINER_SETTINGS
from ldm.formats.checkpoint_files import CONFIG, LAST
from ldm.formats.modules import weights_on
from ldm.processes import agreed
from ldm.targets import get_class, instantiate_from_config, parameters
from ldm.training import resume, run_folder
from ldm.training.averaged import averaged
from ldm.training.callbacks import build_callbacks
from ldm.training.checkpoint import AtomicCheckpointIO, Checkpointing
from ldm.training.estimate import estimate
from ldm.training.launch import Launch, local_rank
from ldm.training.loggers import build_logger, close_loggers, log_config
from ldm.training.messages import introduction, next_steps, results
from ldm.training.precision import precision_options
from ldm.training.signals import Signals, end_with_parent
from ldm.training.step_callback import StepCallback
from ldm.values import Config, is_provided

PATHS = ("base", "vae", "data_root", "reg_data_root")
"""Settings that are paths, anywhere in a config."""

HEAD_START = 5.0
"""Seconds that the first process has to report an error that all find, before another ends the run."""


class Parts(NamedTuple):
    """The objects that a config builds."""

    data: pl.LightningDataModule
    model: pl.LightningModule
    trainer: pl.Trainer


@dataclass
class Origin:
    """The start of a run on its first process: the folder and, for a resume, the state in it."""

    folder: Path
    resumed: bool
    checkpoint: Path | None = None
    state: Mapping[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int | None:
        """The step to continue from; None if the run starts from the base."""
        return self.state.get("global_step")


def run(options: argparse.Namespace, argv: list[str]) -> int:
    """Everything after parsing; returns the exit code. All checks come before the first write."""
    quiet()
    if local_rank() > 0:
        end_with_parent()
    launch = Launch.of_this_process()
    try:
        return begin(options, argv, launch)
    except ReportedError:
        raise
    except UserError:
        if not launch.is_first:
            time.sleep(HEAD_START)
        raise
    except RuntimeError as error:
        if not processes.lost_peer(error):
            raise
        say("another process of this run ended before the start, so this one ends too")
        return EXIT_RESUME_ME if options.resume else 1


def begin(options: argparse.Namespace, argv: list[str], launch: Launch) -> int:
    """Prepare config, objects and run folder on all processes together; then train."""
    signals = Signals()
    with contextlib.ExitStack() as held:
        has_begun = bool(options.resume) or launch.by_lightning
        if has_begun:
            held.enter_context(signals)  # there is a run to resume
        launch.meet()
        config = agreed(read_config, options)
        if not options.train:
            return agreed(check, config, options, launch)
        origin = launch.on_first(find_origin, config, options, held)
        chosen = (origin.folder, origin.step) if origin else (None, None)
        folder, step = held.enter_context(launch.shared(*chosen))
        parts = agreed(build, config, folder, options.trust, signals, launch)
        changes = launch.on_first(refuse_changes, origin, parts, options)
        if is_finished(step, folder, parts):
            return 0
        launch.on_first(prepare_folder, origin, config, argv, changes, held)
        if not has_begun:
            held.enter_context(signals)
        return train(config, folder, step, parts, signals, options.trust)


def find_origin(config: Config, options: argparse.Namespace, held: contextlib.ExitStack) -> Origin:
    """The new run's folder, not created yet; or the resumed run's folder, locked until `held` closes, and state."""
    if not options.resume:
        return Origin(new_folder(config, options), resumed=False)
    folder = run_folder.folder_of(Path(options.resume))
    held.enter_context(run_folder.lock(folder))
    return Origin(folder, True, *resume.state_of(Path(options.resume)))


def new_folder(config: Config, options: argparse.Namespace) -> Path:
    """The path for a new run's folder; raises UserError if it cannot be created."""
    params = config["data"].get("params", {})
    subjects = [
        concept["data_root"] for concept in params.get("concepts") or [params] if "data_root" in concept
    ]
    name = options.name or "_".join(Path(path).stem for path in options.base)
    name = run_folder.run_name(subjects, name, options.postfix)
    return run_folder.new_folder(options.logdir, name)


def refuse_changes(origin: Origin, parts: Parts, options: argparse.Namespace) -> resume.Changes:
    """The accepted differences from the run so far; raises UserError for others."""
    if not origin.resumed:
        return {}
    changes = resume.changes_since(origin.state, checkpoint_facts(parts), options.trust)
    resume.refuse(changes, origin.folder, options.accept_changes)
    return changes


def prepare_folder(
    origin: Origin,
    config: Config,
    argv: list[str],
    changes: resume.Changes,
    held: contextlib.ExitStack,
) -> None:
    """Write this start's record to the run folder. A new run's folder is locked until `held` closes."""
    if not origin.resumed:
        held.enter_context(run_folder.make(origin.folder, config, argv))
        return
    resume.continue_from(origin.checkpoint, origin.folder / "checkpoints")
    run_folder.remove_temporaries(origin.folder)
    run_folder.write_record(origin.folder, config, argv, resumed_from=origin.step, accepted_changes=changes)


def is_finished(step: int | None, folder: Path, parts: Parts) -> bool:
    """Whether the run has reached its last step and is exported; if it has reached it, prints a message."""
    model, trainer = parts.model, parts.trainer
    if step is None or step < trainer.max_steps:
        return False
    exported = hasattr(model, "exported_step") and model.exported_step(folder) == step
    if trainer.is_global_zero:
        line = (
            f"run {folder} is finished at step {step} of {trainer.max_steps}"
            + (": " if exported else "; exporting its model again: ")
            + f"--resume {folder} lightning.trainer.max_steps={2 * step} would train it further"
        )
        print(printable(line))
    return exported


def read_config(options: argparse.Namespace) -> Config:
    """The run's config: the merged YAML files or the resumed run's own, with the command line's overrides."""
    if options.resume:
        if options.base:
            raise UserError(
                "--resume takes the run's own config: leave --base out, and change keys with key.sub=value"
            )
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
    given = [
        name for name in ("data_root", "class_word", "reg_data_root") if getattr(options, name) is not None
    ]
    if given and config["data"].get("params", {}).get("concepts"):
        raise UserError(
            f"--{given[0]} is for one subject, but the config has data.params.concepts: for the first, set"
            f" data.params.concepts.0.{given[0]}=..."
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
    for key in ("learning_rate", "text_encoder_learning_rate"):
        rates = params.get(key)
        if isinstance(rates, dict):
            params[key] = {name: rate * factor for name, rate in rates.items()}
        elif rates:
            params[key] = rates * factor


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
        model.check(data)
    for callback in callbacks:
        if hasattr(callback, "check"):
            callback.check(model)
    io.facts["samples_per_step"] = data.batch_size * trainer.accumulate_grad_batches * trainer.world_size
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


def train(
    config: Config,
    folder: Path,
    step: int | None,
    parts: Parts,
    signals: Signals,
    trust: Sequence[str] = (),
) -> int:
    """Fit, from the checkpoint of `step` if given; export the model and print how to sample it."""
    data, model, trainer = parts
    if config["lightning"]["logger"]:
        trainer.loggers = [build_logger(config["lightning"]["logger"], folder, step, trust)]
    log_config(trainer, config)
    checkpoint = None if step is None else folder / "checkpoints" / LAST
    try:
        began = time.perf_counter()
        if trainer.is_global_zero:
            print(printable_lines(introduction(folder, *parts, step)), flush=True)
        trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
        if not signals.stopped:
            finish(folder, parts, time.perf_counter() - began)
            return 0
    except SystemExit as stop:  # a signal before the first step, or during the export
        if stop.code != EXIT_RESUME_ME:
            raise
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        raise UserError(
            f"{error}: free some space and --resume {folder}; everything saved is kept"
        ) from error
    except RuntimeError as error:
        if not processes.lost_peer(error):
            raise
        say(f"another process died: continue with python main.py --resume {folder}")
        return EXIT_RESUME_ME
    finally:
        close_loggers(trainer)
    if not trainer.is_global_zero:
        return 0  # for any other code Lightning would kill the first process
    say(f"stopped, everything is saved: continue with python main.py --resume {folder}")
    return EXIT_RESUME_ME


def finish(folder: Path, parts: Parts, seconds: float) -> None:
    """Export the trained model and print the results of `seconds` of training.

    Raises UserError if a callback finds the model useless.
    """
    for callback in parts.trainer.callbacks:
        if isinstance(callback, StepCallback):
            callback.check_result(parts.trainer)
    if parts.trainer.is_global_zero:
        with averaged(parts.trainer):
            written = parts.model.export(folder)
        for callback in parts.trainer.callbacks:
            if isinstance(callback, StepCallback):
                callback.after_export(parts.trainer)
        messages = [results(folder, seconds), written, next_steps(folder)]
        print(printable_lines("\n".join(filter(None, messages))))


def check(config: Config, options: argparse.Namespace, launch: Launch) -> int:
    """`--train false`: build everything, and print what the run would do and cost."""
    if not options.resume:
        new_folder(config, options)
    with tempfile.TemporaryDirectory() as folder:
        parts = build(config, Path(folder), options.trust, launch=launch)
        if launch.is_first:
            print(estimate(*parts, Path(options.resume or options.logdir)))
    return 0


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
