"""A long run on the embedded base with many saves: memory, disk and speed. About 15 minutes; Linux."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ldm.training.rows import read_rows
from tests.conftest import PROJECT, RECIPE

pytestmark = pytest.mark.slow
STEPS = 3000
WARM = 500
"""Steps until caches, allocator and the frozen copy have settled."""


def test_memory_and_disk_stay_as_they_are(tmp_path):
    words = [
        f"lightning.trainer.max_steps={STEPS}", "lightning.callbacks.checkpoint.params.every_steps=100",
        "lightning.callbacks.samples.params.every_steps=500",
    ]  # fmt: skip
    command = [sys.executable, "main.py", "--base", RECIPE, "-l", str(tmp_path / "logs"), *words]
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(command, cwd=PROJECT, stdout=log, stderr=log)
    seen = []
    while process.poll() is None:
        time.sleep(2)
        if row := look(process.pid, tmp_path / "logs"):
            seen.append(row)
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()[-2000:]
    (run,) = (tmp_path / "logs").iterdir()
    assert len(read_rows(run / "metrics.jsonl")) == STEPS
    (tmp_path / "soak.jsonl").write_text("".join(json.dumps(row) + "\n" for row in seen))
    print(f"\n{tmp_path / 'soak.jsonl'}\n{table(seen)}")

    warm = [row for row in seen if row["step"] >= WARM]
    settled = sorted(row["memory"] for row in warm[: len(warm) // 5])[len(warm) // 10]
    assert max(row["memory"] for row in warm) < 1.1 * settled
    checkpoint = (run / "checkpoints" / "last.ckpt").stat().st_size
    disk = [row["disk"] for row in warm]
    assert max(disk) - min(disk) < 1.5 * checkpoint  # a save in progress, and some growth of the records
    assert max(row["files"] for row in warm[-20:]) <= max(row["files"] for row in warm[:20]) + 2


def look(pid: int, logs: Path) -> dict | None:
    """Step, seconds, memory and disk in bytes, and open files; None before the first step and after the end."""
    try:
        (run,) = logs.iterdir()
        step = read_rows(run / "metrics.jsonl")[-1]["step"]
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        disk = sum(path.stat().st_size for path in run.rglob("*") if path.is_file())
    except (OSError, ValueError, IndexError):
        return None
    return {"step": step, "time": time.monotonic(), "memory": 4096 * pages, "disk": disk, "files": files}


def table(seen: list[dict]) -> str:
    """Memory, disk and steps per second, including everything between steps, for each tenth of the run."""
    lines = []
    for end in range(STEPS // 10, STEPS + 1, STEPS // 10):
        part = [row for row in seen if end - STEPS // 10 <= row["step"] < end]
        if len(part) < 2:
            continue
        rate = (part[-1]["step"] - part[0]["step"]) / (part[-1]["time"] - part[0]["time"])
        memory, disk = (max(row[key] for row in part) / 1e6 for key in ("memory", "disk"))
        lines.append(
            f"to step {end}: {memory:.0f} MB of memory, {disk:.0f} MB of disk, "
            f"{part[-1]['files']} files, {rate:.2f} steps/s"
        )
    return "\n".join(lines)
