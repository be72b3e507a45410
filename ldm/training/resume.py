"""Resuming a run: from which checkpoint, and only with unchanged settings."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer

from ldm.config import flat
from ldm.errors import UserError
from ldm.files import replacing, sync_to_disk
from ldm.formats.checkpoint_files import CONFIG, LAST, newest_state, older_states, problem_with, step_in_name
from ldm.formats.safe_loading import load_checkpoint
from ldm.schema import unaffecting
from ldm.targets import signature
from ldm.training.precision import trained_in

WATCHERS = ("lightning.callbacks.", "lightning.logger.")
"""Sections of which no setting changes the loss record. Other settings are marked in their signatures."""

MAX_STEPS = "lightning.trainer.max_steps"
PRECISION = "lightning.trainer.precision"
SCHEDULES_WITHOUT_END = (None, "constant", "constant_with_warmup", "piecewise_constant")
"""Learning-rate schedules that do not depend on `max_steps`."""

Changes = dict[str, list[object]]
"""Differences from the run so far: name -> [then, now]."""


def state_of(resumed: Path) -> tuple[Path | None, dict[str, object]]:
    """The full state that `--resume` names, or the newest of a run folder that loads, and its content.

    (None, {}) with a warning if none was saved yet: the run starts again at step 0.
    """
    if resumed.is_dir():
        path = newest_state(resumed)
        if path is None:
            warnings.warn(
                f"run {resumed} was interrupted before its first checkpoint: it starts again at step 0,"
                " with the prior samples already drawn",
                stacklevel=2,
            )
            return None, {}
        return path, load_checkpoint(path)
    problem = problem_with(resumed)
    if problem:
        raise UserError(f"--resume {resumed}: {problem}; name the run folder to use the newest that loads")
    return resumed, load_checkpoint(resumed)


def changes_since(
    checkpoint: Mapping[str, Any], current: Mapping[str, Any], trust: Sequence[str] = ()
) -> Changes:
    """Differences between the facts in `checkpoint` and this start's that would change the loss record.

    checkpoint: its content; if empty, nothing was trained yet and nothing can change.
    """
    if not checkpoint:
        return {}
    then, now = flat(checkpoint.get("config", {})), flat(current["config"])
    then[PRECISION] = trained_in(then.get(PRECISION), checkpoint)
    constant = now.get("model.params.lr_schedule") in SCHEDULES_WITHOUT_END
    same = unaffecting(current["config"], trust)
    changes = {
        key: [then.get(key), now.get(key)]
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
        and not (key in same or key.startswith(WATCHERS))
        and not (key == MAX_STEPS and constant)
    }
    facts = {
        "base_fingerprint": "the base model",
        "data_fingerprint": "the images",
        "samples_per_step": "samples per optimizer step (devices x batch_size x accumulate_grad_batches)",
    }
    for key, name in facts.items():
        if key in checkpoint and checkpoint[key] != current.get(key):
            changes[name] = [checkpoint[key], current.get(key)]
    return changes


def refuse(changes: Changes, run: Path, accept: bool) -> None:
    """Raise UserError for `changes`, unless they are accepted now or were accepted at an earlier start."""
    for accepted in accepted_before(run):
        changes = {
            key: [then, now]
            for key, (then, now) in changes.items()
            if key not in accepted or accepted[key] != now
        }
    if not changes:
        return
    listed = "; ".join(f"{key} was {then}, now {now}" for key, (then, now) in changes.items())
    if not accept:
        raise UserError(
            f"--resume {run}: these changes would alter the loss record: {listed}."
            " Undo them, start a new run, or add --accept-changes"
        )
    warnings.warn(f"continuing with changes: {listed}", stacklevel=2)


def accepted_before(run: Path) -> list[dict[str, Any]]:
    """The changes accepted at each earlier start of `run`: name -> accepted value."""
    accepted = []
    for path in sorted((run / CONFIG).parent.glob("start-*.json")):
        try:
            changes = json.loads(path.read_text()).get("accepted_changes") or {}
            accepted.append({str(key): now for key, (_, now) in changes.items()})
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is damaged ({type(error).__name__}): restore it or remove it") from error
    return accepted


def continue_from(checkpoint: Path | None, folder: Path) -> None:
    """Make `checkpoint` the `last.ckpt` of `folder`, and delete the states of later steps.

    Those steps will be repeated, and a later resume must not continue from an abandoned state.
    """
    last = folder / LAST
    if checkpoint is None or checkpoint.absolute() == last.absolute():
        return
    if last.is_file() and problem_with(last) is None:
        warnings.warn(f"continuing from {checkpoint}; it replaces {last} of a later step", stacklevel=2)
    step = load_checkpoint(checkpoint)["global_step"]
    with replacing(last) as temporary:
        link_or_copy(checkpoint, temporary)
    for path in older_states(folder):
        if step_in_name(path) > step:
            path.unlink()
    sync_to_disk(folder)


def take_optimizer_settings(trainer: Trainer, module: LightningModule) -> None:
    """Replace a checkpoint's learning rates and other optimizer settings by the config's.

    They differ only if a change was accepted.
    """
    fresh = module.configure_optimizers()
    # Groups also hold state, such as the learning rate that Prodigy has found.
    settings = signature(type(trainer.optimizers[0])).keys() - {"params", "lr"}
    optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
    new_schedule = fresh["lr_scheduler"]["scheduler"]
    for group, new in zip(optimizer.param_groups, fresh["optimizer"].param_groups, strict=True):
        group.update({key: value for key, value in new.items() if key in settings})
    schedule.base_lrs = new_schedule.base_lrs
    # The checkpoint's rates belong to its own schedule, perhaps with another max_steps.
    factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
    for group, rate, factor in zip(optimizer.param_groups, schedule.base_lrs, factors, strict=True):
        group["lr"] = rate * factor


def link_or_copy(path: Path, name: Path) -> None:
    """Give the file `path` a second name: as a hard link if the file system allows it, else as a copy."""
    name.unlink(missing_ok=True)
    try:
        os.link(path, name)
    except OSError:
        shutil.copyfile(path, name)
