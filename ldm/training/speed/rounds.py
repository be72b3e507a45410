"""Runs jobs in their own processes, in several rounds."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from ldm.console import progress_bar
from ldm.errors import UserError
from ldm.files import PROJECT
from ldm.training.speed.jobs import Job
from ldm.training.speed.summary import Row


def rounds_of(turns: Sequence[Sequence[Job]], rounds: int) -> Iterator[dict[tuple[str, str], list[Row]]]:
    """(group, variant) -> its rows so far, one per round; yielded after each process.

    turns: the jobs of each process, in order.
    """
    rows: dict[tuple[str, str], list[Row]] = {}
    with progress_bar(rounds * len(turns), "measuring", "process") as bar:
        for _ in range(rounds):
            for jobs in turns:
                bar.set_postfix_str(f"{jobs[0].group}: {jobs[0].variant}")
                for row in measured(jobs):
                    rows.setdefault((row["group"], row["variant"]), []).append(row)
                bar.update()
                yield rows


def measured(jobs: Sequence[Job]) -> list[Row]:
    """Run `jobs` in one new process and return their rows. Raises UserError if it fails."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        arguments = ["-m", "ldm.training.speed.worker", json.dumps([asdict(job) for job in jobs]), str(out)]
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=PROJECT,
            env=environment | dict(jobs[0].environment),
            capture_output=True,
            text=True,
        )
        if not out.exists():
            lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            names = ", ".join(f"{job.group} {job.variant}".strip() for job in jobs)
            raise UserError(f"measuring {names} failed: {lines[-1]}")
        return json.loads(out.read_text())
