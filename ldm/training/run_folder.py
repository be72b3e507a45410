"""The run folder: created once, locked by one process, free of links that lead out of it."""

import contextlib
import fcntl
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO

import torch

from ldm.config import save_config
from ldm.early import require_run
from ldm.errors import UserError, quoted
from ldm.files import PROJECT, no_link, refuse_links, replacing
from ldm.formats.checkpoint_files import CONFIG
from ldm.values import FolderName, problem_with

PACKAGES = (
    "torch",
    "pytorch-lightning",
    "diffusers",
    "transformers",
    "omegaconf",
    "safetensors",
    "numpy",
    "pillow",
)

LONGEST = 60
"""Characters of several data folders' names in a run's name; longer ones become a count."""


def run_name(data_roots: Sequence[str | Path], name: str, postfix: str) -> str:
    """`<data folder><timestamp>_<name><postfix>`; the same on all processes of a scheduler's job."""
    job = os.environ.get("TORCHELASTIC_RUN_ID") or os.environ.get("SLURM_JOB_ID")
    start = f"job-{job}" if job and job != "none" else time.strftime("%Y-%m-%dT%H-%M-%S")
    subject = "+".join(Path(folder).resolve().name for folder in data_roots)
    subject = subject if len(data_roots) < 2 or len(subject) <= LONGEST else f"{len(data_roots)}-subjects"
    return re.sub(r"[^\w.+-]", "-", f"{subject}{start}_{name}{postfix}")


def new_folder(logdir: str | Path, name: str) -> Path:
    """The path of a new run's folder, not created yet; raises UserError if it exists or cannot be created."""
    if problem := problem_with(name, FolderName):
        raise UserError(f"the run's name {problem}; choose another --name or --postfix")
    folder = Path(logdir) / name
    try:
        exists = folder.exists()
    except OSError as error:
        raise UserError(f"run folder {folder}: {error.strerror}; choose another --name") from error
    if exists:
        raise UserError(
            f"run folder {folder} exists: choose another --name, or continue it with --resume {quoted(folder)}"
        )
    return folder


def make(folder: Path, config: Mapping[str, object], argv: list[str]) -> IO[str]:
    """Create a new run's folder with its first record; returns its lock. Existing folders are never reused."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError as error:
        raise UserError(f"run folder {folder} exists: choose another --name") from error
    except OSError as error:
        raise UserError(
            f"run folder {folder} cannot be created ({error.strerror}): choose another --logdir"
        ) from error
    try:
        held = lock(folder)
        write_record(folder, config, argv)
    except OSError as error:  # without its config it could not be resumed
        shutil.rmtree(folder, ignore_errors=True)
        raise UserError(
            f"run folder {folder} cannot be written ({error.strerror}): free some space, or choose another --logdir"
        ) from error
    return held


def remove_temporaries(folder: Path) -> None:
    """Remove temporary files and folders that a crash left anywhere in a run folder."""
    for path in list(folder.rglob(".*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def lock(folder: Path) -> IO[str]:
    """Lock `folder` for this process until the returned file is closed or the process ends in any way.

    Raises UserError, naming the owner, if another process holds the lock.
    """
    try:
        file = open(folder / ".lock", "a+", opener=no_link)  # noqa: SIM115 - held for the life of the run
    except OSError as error:
        raise UserError(
            f"run folder {folder} cannot be written ({error.strerror}): fix its permissions"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise UserError(
            f"run folder {folder} is in use by {file.read().strip() or 'another process'}"
        ) from error
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file


def write_record(folder: Path, config: Mapping[str, object], argv: list[str], **resumed: object) -> None:
    """Record what is needed to repeat the run: config, command line, versions, git revision.

    Each start of the run (the first, and every resume) adds a numbered record. resumed: the step a resume started
    from, and the changes accepted for it.
    """
    (folder / CONFIG).parent.mkdir(exist_ok=True)
    save_config(config, folder / CONFIG)
    numbers = [path.stem.removeprefix("start-") for path in (folder / CONFIG).parent.glob("start-*.json")]
    number = max((int(digits) + 1 for digits in numbers if digits.isdecimal()), default=0)
    record = {
        "command": ["python", sys.argv[0], *argv],
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": machine(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "git": _git_revision(),
        "config": dict(config),
        **resumed,
    }
    with replacing((folder / CONFIG).parent / f"start-{number:03d}.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, default=str))


def machine() -> dict[str, str]:
    """The machine's name, processor and GPUs."""
    processor = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "processor": f"{os.cpu_count()} x {processor or platform.machine()}",
        "gpus": ", ".join(gpus),
    }


def folder_of(resumed: Path) -> Path:
    """The run folder that `--resume` names, directly or by a checkpoint in it. Raises UserError for links in it."""
    require_run(resumed)
    folder = resumed if resumed.is_dir() else resumed.absolute().parent.parent
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"--resume {resumed}: {folder} is not a run folder ({CONFIG} is missing); start a new run"
        )
    refuse_links(folder)
    return folder


def _git_revision() -> str:
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
        return subprocess.run(
            command, cwd=PROJECT, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
