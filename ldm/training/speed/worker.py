"""The measuring process: `python -m ldm.training.speed.worker '[{"group": "step", ...}]' rows.json`.

Takes jobs as JSON and writes their rows as JSON. A module because Lightning starts it again for a second process.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ldm import processes
from ldm.training.speed.jobs import Job
from ldm.training.speed.measures import MEASURES


def measure(jobs: Sequence[Job], out: Path) -> None:
    """Run the jobs in order and write their rows to `out`."""
    rows = []
    for job in jobs:
        found = MEASURES[job.measure](job)
        rows += [{"group": job.group, "variant": job.variant, **row} for row in found]
    if processes.rank() == 0:
        out.write_text(json.dumps(rows))


if __name__ == "__main__":
    measure([Job(**job) for job in json.loads(sys.argv[1])], Path(sys.argv[2]))
