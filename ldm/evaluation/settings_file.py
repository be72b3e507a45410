"""The settings of the results in a folder: results of other settings must not share it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.config import flat
from ldm.errors import UserError
from ldm.files import check_writable, write_json

NAME = "settings.json"

VERSION = 1
"""Raised when the meaning of what is compared changes."""

WITHOUT_INFLUENCE = (
    *(
        f"data.params.{key}"
        for key in ("num_workers", "prior.cache", "prior.cache_gigabytes", "prior.fill_at_start")
    ),
    *("lightning.callbacks.", "lightning.logger"),
    *(f"lightning.trainer.{key}" for key in ("accelerator", "devices", "max_time", "num_nodes", "strategy")),
    *("model.params.compile", "model.params.cuda_graphs"),
)
"""Keys, and starts of keys, of a run's config that change what it learns at most by rounding."""


def of_training(config: Mapping[str, object]) -> dict[str, object]:
    """What decides the result of a run with `config`, flat."""
    return {key: value for key, value in flat(config).items() if not key.startswith(WITHOUT_INFLUENCE)}


def of_evaluation(config: Mapping[str, object]) -> dict[str, object]:
    """What decides the result of an evaluation with `config`, keys of EvaluationSettings, flat."""
    return {
        key: value
        for key, value in flat(config).items()
        if not (key.startswith("published") or key.endswith(".batch_size"))
    }


def keep_to(
    settings: Mapping[str, object], folder: Path, results: Sequence[str], what: str, name: str = NAME
) -> None:
    """Write `settings` to the file `name` in `folder`; several processes may do so at once.

    settings: what decides the results, as JSON can hold it; absent and None are the same. results: patterns of paths
    that are there once there is any result. what: the results are, for the message.

    Raises UserError if the folder has results of other settings, or of a version that did not write them down.
    """
    path, plain = folder / name, flat(json.loads(json.dumps(settings)))
    now = {"version": VERSION, **{key: value for key, value in plain.items() if value is not None}}
    check_writable(folder)
    if not any(found for pattern in results for found in folder.glob(pattern)):
        write_json(path, now, shared=True)
        return
    try:
        before = flat(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
        changed = [key for key in {**now, **before} if before.get(key) != now.get(key)]
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): choose another --outdir") from error
    if before.get("version") != VERSION:
        raise UserError(f"{folder} has {what} of an earlier version: choose another --outdir, or remove it")
    if changed:
        key = changed[0]
        values = f"{key} was {before.get(key)}, now {now.get(key)}"
        values = values if len(values) < 200 else key
        raise UserError(
            f"{folder} has {what} of other settings ({values}): choose another --outdir, or remove it"
        )


def keep_to_both(
    training: Mapping[str, object],
    evaluation: Mapping[str, object],
    folder: Path,
    trained: str,
    measured: Sequence[str],
    what: str,
) -> None:
    """`keep_to` for runs and their evaluations, each in a file of its own.

    A mistake in the evaluation's settings may show only after a training, which the mended command then keeps.
    trained: pattern of what is there once a run has saved. measured: of what is there once one was evaluated.
    """
    keep_to(training, folder, [trained, *measured], what)
    keep_to({"evaluation": evaluation}, folder, measured, what, "evaluation-settings.json")
