"""What main.py builds, for a job of the speed benchmark."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.config import load_config
from ldm.files import PROJECT
from ldm.training.build import build as build_run
from ldm.training.build import quiet
from ldm.training.run_folder import write_record
from ldm.training.speed.jobs import Job
from ldm.values import Config

WITHOUT_CALLBACKS = [f"lightning.callbacks.{name}=null" for name in ("validation", "samples", "checkpoint")]
"""Overrides that leave callbacks out of measured steps; loss record, non-finite guard and progress bar stay."""

NO_CACHE = "data.params.prior.cache=null"
"""Draws the prior samples anew, even if the machine has them in its cache."""


def build(
    job: Job, max_steps: int | None, overrides: Sequence[str] = WITHOUT_CALLBACKS
) -> tuple[Any, Any, Any, tempfile.TemporaryDirectory[str]]:
    """Data, model, trainer as main.py builds them for the job, and a temporary folder for their files.

    max_steps: None for the job's own.
    """
    quiet()
    steps = [] if max_steps is None else [f"lightning.trainer.max_steps={max_steps}"]
    config = config_of(job, [*overrides, *steps])
    folder = tempfile.TemporaryDirectory()
    write_record(Path(folder.name), config, [])  # the export's card and the run's page read it
    return *build_run(config, Path(folder.name)), folder


def config_of(job: Job, overrides: Sequence[str]) -> Config:
    """The job's config with `overrides`; the job's own overrides win."""
    paths = [str(PROJECT / path) for path in job.configs]
    return load_config(paths, ["lightning.logger=null", NO_CACHE, *overrides, *job.overrides])
