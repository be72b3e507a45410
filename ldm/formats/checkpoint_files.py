"""The checkpoint files of a run folder: their names, and the newest that loads."""

import warnings
import zipfile
from pathlib import Path

from ldm.errors import UserError, quoted
from ldm.files import is_special
from ldm.formats.described import described
from ldm.formats.run_checkpoint import FullState
from ldm.formats.safe_loading import load_checkpoint

CONFIG = Path("configs", "config.yaml")
"""The merged config, relative to a run folder."""
LAST = "last.ckpt"
"""The newest full state."""
BEST = "best.ckpt"
"""Only the weights, of the best validation."""


def run_of(path: Path) -> Path | None:
    """The run folder that `path` (itself, one of its checkpoints, or its exported model) belongs to, if any."""
    places = (path, *path.absolute().parents[:2])
    return next((folder for folder in places if (folder / CONFIG).is_file()), None)


def state_name(step: int) -> str:
    """Name of an older full state, if more than one is kept."""
    return f"state-{step:06d}.ckpt"


def older_states(folder: Path) -> list[Path]:
    """Full states other than `last.ckpt`, newest first, ordered by step, since copying changes a file's time."""
    return sorted(folder.glob("state-*.ckpt"), key=step_in_name, reverse=True)


def step_in_name(path: Path) -> int:
    """The step in a name made by `state_name`; -1 for other names."""
    digits = path.stem.removeprefix("state-")
    return int(digits) if digits.isdecimal() else -1


def newest_state(run: Path) -> Path | None:
    """The newest full state of a run folder that loads, with a warning for damaged ones.

    None if no state was saved yet. Raises UserError if there are some but none loads.
    """
    folder = run / "checkpoints"
    candidates = [path for path in (folder / LAST, *older_states(folder)) if path.is_file()]
    for path in candidates:
        problem = problem_with(path)
        if problem is None:
            return path
        warnings.warn(f"{problem}; using the previous checkpoint", stacklevel=2)
    if candidates:
        raise UserError(
            f"run {run}: none of its {len(candidates)} checkpoints can be loaded; restore one, or start a new run"
        )
    return None


def newest_checkpoint(run: Path) -> Path:
    """Like `newest_state`, but raises UserError if there is none."""
    path = newest_state(run)
    if path is None:
        raise UserError(
            f"run {run}: no checkpoint in {run / 'checkpoints'} yet; continue the run with --resume {quoted(run)}"
        )
    return path


def has_state(folder: Path) -> bool:
    """Whether a checkpoint folder has a state to resume from."""
    return any(path.is_file() for path in (folder / LAST, *older_states(folder)))


def what_is_kept(folder: Path) -> str:
    """For messages of a run that ends or cannot save, whose checkpoint folder is `folder`."""
    return "the last good checkpoint is kept" if has_state(folder) else "there is no checkpoint yet"


def problem_with(path: Path) -> str | None:
    """Why a run cannot resume from the checkpoint file `path`; None if it can."""
    if not is_whole(path):
        return f"checkpoint {path} is damaged"
    try:
        content = load_checkpoint(path)
        if "optimizer_states" not in content:
            return f"checkpoint {path} has only weights, not a state to resume from"
        described(FullState, content, path)
    except UserError as error:
        return f"checkpoint {error}"
    return None


def is_whole(path: Path) -> bool:
    """Whether a checkpoint file is complete and undamaged, by its checksums."""
    try:
        if is_special(path):
            return False
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, ValueError, RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError):
        return False
