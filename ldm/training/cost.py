"""What a training costs: trained numbers, sizes of checkpoints, time of a step, peak memory."""

import json
import statistics
import time
from pathlib import Path

from pytorch_lightning import LightningModule, Trainer

from ldm.evaluation.benchmark_methods import COST_FILE
from ldm.files import replacing
from ldm.formats.checkpoint_files import LAST
from ldm.training.speed.clock import peak_bytes
from ldm.training.step_callback import StepCallback

WARM_STEPS = 2
"""Steps at the start that are not counted."""


class Cost(StepCallback):
    """Writes `cost.json` into the run's folder after the last step; it comes after the checkpoint callback."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._ends = [time.perf_counter()]

    def on_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._ends.append(time.perf_counter())
        if trainer.global_step < trainer.max_steps or not trainer.is_global_zero:
            return
        weights = list(pl_module.state_dict().values())
        seconds = [after - before for before, after in zip(self._ends, self._ends[1:], strict=False)]
        folder = Path(trainer.default_root_dir)
        cost = {
            "trained": sum(p.numel() for p in pl_module.parameters() if p.requires_grad),
            "weights_bytes": sum(value.nbytes for value in weights),
            "state_bytes": (folder / "checkpoints" / LAST).stat().st_size,
            "seconds": statistics.median(seconds[WARM_STEPS:] or seconds),
            "peak_bytes": peak_bytes(),
        }
        with replacing(folder / COST_FILE) as temporary:
            temporary.write_text(json.dumps(cost, indent=1) + "\n")
