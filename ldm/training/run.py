"""A run, from command-line options to the exported model: config, objects, run folder, fit, export.

The config is read in `run_config`, the objects are built in `build`.
"""

import argparse
import contextlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm import processes
from ldm.errors import (
    DISK_IS_FULL,
    EXIT_RESUME_ME,
    ReportedError,
    UserError,
    printable,
    printable_lines,
    quoted,
    say,
)
from ldm.formats.checkpoint_files import LAST, has_state
from ldm.processes import agreed
from ldm.training import resume, run_folder
from ldm.training.averaged import averaged
from ldm.training.build import Parts, build, checkpoint_facts, quiet
from ldm.training.estimate import estimate
from ldm.training.launch import Launch, local_rank
from ldm.training.loggers import build_logger, close_loggers, log_config, log_in
from ldm.training.messages import introduction, next_steps, results
from ldm.training.run_config import read_config
from ldm.training.signals import Signals, end_with_parent
from ldm.training.step_callback import StepCallback
from ldm.values import Config

LOGS = "logs"
"""Folder of run folders, without --logdir."""

HEAD_START = 5.0
"""Seconds that the first process has to report an error that all find, before another ends the run."""


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
    processes.leave_at_exit()
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
        launch.on_first(log_in, config["lightning"]["logger"], bool(options.resume))
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
    return run_folder.new_folder(options.logdir or LOGS, name)


def refuse_changes(origin: Origin, parts: Parts, options: argparse.Namespace) -> resume.Changes:
    """The accepted differences from the run so far; raises UserError for others, and for a run past its last step."""
    if not origin.resumed:
        return {}
    if origin.step is not None and origin.step > parts.trainer.max_steps:
        raise UserError(
            f"--resume {origin.folder}: it is at step {origin.step}, past {resume.MAX_STEPS}={parts.trainer.max_steps}:"
            " leave that out, or resume an earlier checkpoint of it"
        )
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
            + f"--resume {quoted(folder)} lightning.trainer.max_steps={2 * step} would train it further"
        )
        print(printable(line))
    return exported


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
        if trainer.global_step >= trainer.max_steps and not signals.stopped:
            finish(folder, parts, time.perf_counter() - began)
            return 0
    except SystemExit as stop:  # a signal before the first step, or during the export
        if stop.code != EXIT_RESUME_ME:
            raise
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        raise UserError(
            f"{error}: free some space and --resume {quoted(folder)}; everything saved is kept"
        ) from error
    except RuntimeError as error:
        if not processes.lost_peer(error):
            raise
        say(f"another process died: continue with python main.py --resume {quoted(folder)}")
        return EXIT_RESUME_ME
    finally:
        close_loggers(trainer)
    if not trainer.is_global_zero:
        return 0  # for any other code Lightning would kill the first process
    saved = has_state(folder / "checkpoints")
    what = "everything is saved: continue" if saved else "nothing is saved: start again"
    say(f"stopped at step {trainer.global_step}, {what} with python main.py --resume {quoted(folder)}")
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
            log_in(config["lightning"]["logger"])
            print(estimate(*parts, Path(options.resume or options.logdir or LOGS)))
    return 0
