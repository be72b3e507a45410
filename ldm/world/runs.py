"""Runs that the embedded world's measurements train, or find trained."""

from collections.abc import Callable, Sequence
from pathlib import Path

from ldm.errors import EXIT_INTERRUPTED, EXIT_RESUME_ME, StoppedError, UserError

Command = Callable[[Sequence[str]], int]
"""A script's `main`: from arguments to exit code."""


def trained(train: Command, runs: Path, words: Sequence[str]) -> Path:
    """The finished run in the folder `runs`: there already, resumed, or trained by main.py with `words`."""
    begun = sorted(runs.glob("*/checkpoints/last.ckpt"))
    if not list(runs.glob("*/model/dreambooth.json")):
        must(train, ["--resume", str(begun[-1].parents[1])] if begun else [*words, "--logdir", str(runs)])
    return sorted(runs.glob("*/model/dreambooth.json"))[-1].parents[1]


def must(command: Command, words: Sequence[str]) -> None:
    """Run `command`. Raises StoppedError if a signal ended it, and UserError if it failed."""
    code = command(words)
    if code == EXIT_INTERRUPTED:
        raise KeyboardInterrupt
    if code == EXIT_RESUME_ME:
        raise StoppedError("stopped; the same command goes on from there")
    if code:
        raise UserError(f"the last command ended with exit code {code}; what is done is kept")
