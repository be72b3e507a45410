"""main.py, with a loss that is NaN in step 3, on the last process only."""

import sys

from ldm import processes
from ldm.methods.dreambooth import DreamBooth
from main import main

training_step = DreamBooth.training_step


def spoilt_step(self, batch, batch_idx):
    out = training_step(self, batch, batch_idx)
    mine = processes.rank() == processes.world_size() - 1
    return {**out, "loss": out["loss"] * (float("nan") if mine and self.global_step == 2 else 1)}


if __name__ == "__main__":
    DreamBooth.training_step = spoilt_step
    sys.exit(main())
