"""Keeps a run's page up to date while it trains."""

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from pytorch_lightning import LightningModule, Trainer

from ldm.errors import UserError
from ldm.files import replacing, warn_if_unwritable
from ldm.training.messages import device_of
from ldm.training.run_page import PAGE, Album, run_page
from ldm.training.run_record import USAGE, Kind, RunRecord, State
from ldm.training.step_callback import StepCallback
from ldm.training.validation import Validation


class RunReport(StepCallback):
    """Writes `report.html` at each validation, when the run stops, and after its export."""

    def __init__(self, validation: Validation | None = None):
        """validation: must precede this callback; the page is written at its steps, or without it only at the end."""
        self._validation = validation
        self._album = Album()
        self._record: RunRecord | None = None
        self._first_step: int | None = None
        """None if this start only exports."""
        self.seconds = 0.0
        """Time spent on pages so far."""

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first_step = trainer.global_step
        self._write_at_validation(trainer)

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write_at_validation(trainer)

    def _write_at_validation(self, trainer: Trainer) -> None:
        if self._validation and self._validation.last_row.get("step") == trainer.global_step:
            self.write(trainer, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            self.write(trainer, "stopped")

    def after_export(self, trainer: Trainer) -> None:
        self.write(trainer, "finished")

    def write(self, trainer: Trainer, kind: Kind) -> None:
        """Write the page of a run in state `kind`, on the first process; a failure is only a warning."""
        if not trainer.is_global_zero:
            return
        began, folder = time.perf_counter(), Path(trainer.default_root_dir)
        with warn_if_unwritable(str(folder / PAGE)):
            try:
                self._record = record = RunRecord.read(folder, self._record)
                record = replace(record, usage=self._keep_usage(trainer, record))
                html = run_page(record, State(kind, trainer.global_step, trainer.max_steps), self._album)
            except UserError as error:
                raise OSError(0, str(error)) from error
            with replacing(folder / PAGE, sync=False) as temporary:
                temporary.write_text(html, encoding="utf-8")
        self.seconds += time.perf_counter() - began

    def _keep_usage(self, trainer: Trainer, record: RunRecord) -> list[dict[str, object]]:
        """Write time and memory of this start with those of earlier ones; returns all of them."""
        start = len(record.starts) - 1
        rows = [row for row in record.usage if row.get("start") != start]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        row = {
            "start": start,
            "from_step": trainer.global_step if self._first_step is None else self._first_step,
            "to_step": trainer.global_step,
            "seconds": round(time.perf_counter() - self._began, 2),
            "seconds_of_pages": round(self.seconds, 3),
            "peak_memory": peak,
            "device": device_of(trainer),
        }
        if torch.cuda.is_available():
            row["peak_gpu_memory"] = torch.cuda.max_memory_allocated()
        rows.append(row)
        with replacing(record.folder / USAGE, sync=False) as temporary:
            temporary.write_text(json.dumps(rows, indent=1))
        return rows
