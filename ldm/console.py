"""Progress on the console: one bar on a terminal, a line every 30 seconds in a log file."""

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY = 30.0
"""Seconds between lines of a bar that is written to a file."""

LINE = "{desc}{n_fmt} of {total_fmt}, {elapsed} so far, {remaining} left, {rate_fmt}{postfix}"


class Lines(tqdm):
    """A bar for a log file: a line every LINE_EVERY seconds and at the end, and no carriage returns."""

    leave: bool

    def __init__(self, *arguments: object, **options: object):
        self._written_at, self._lines = time.perf_counter(), 0
        timing = {"mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "bar_format": LINE}
        super().__init__(*arguments, **{**options, **timing})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write a line if the last is LINE_EVERY old; `msg`, which would erase a bar, is ignored."""
        if msg is None and time.perf_counter() - self._written_at >= LINE_EVERY:
            self._write()

    def close(self) -> None:
        """Write the last line if the bar is left in place or has written lines before."""
        if not self.disable and (self.leave or self._lines):
            self._write()
        self.leave = False  # the line is ended already
        super().close()

    def clear(self, *arguments: object, **options: object) -> None:
        """Do nothing: a log file has no bar to erase before other text."""

    def _write(self) -> None:
        self._written_at, self._lines = time.perf_counter(), self._lines + 1
        # Not tqdm.write, which would redraw this bar.
        print(str(self).strip(), file=self.fp, flush=True)


def progress_bar(
    total: int, title: str, unit: str, *, initial: int = 0, leave: bool = True, disable: bool = False
) -> tqdm:
    """A bar of `total` units on stderr.

    initial: units done before; leave: keep the last state on screen; disable: show nothing.
    """
    return (tqdm if sys.stderr.isatty() else Lines)(
        total=total,
        initial=initial,
        desc=f"{title}: ",
        unit=unit,
        leave=leave,
        disable=disable,
        dynamic_ncols=True,
        file=sys.stderr,
    )


def counted(items: Collection[T], title: str, unit: str) -> Iterator[T]:
    """`items`, with a bar that counts those that are done."""
    with progress_bar(len(items), title, unit) as bar:
        for item in items:
            yield item
            bar.update()


class _Run:
    bar: tqdm | None = None
    """The run's bar, if any: a terminal has room for one."""


@contextlib.contextmanager
def run_bar(total: int, title: str, unit: str, *, disable: bool = False) -> Iterator[tqdm]:
    """A bar on which `phase` shows the current phase while the block lasts."""
    with progress_bar(total, title, unit, disable=disable) as bar:
        before, _Run.bar = _Run.bar, bar
        try:
            yield bar
        finally:
            _Run.bar = before


@contextlib.contextmanager
def phase(title: str, total: int = 0) -> Iterator[Callable[[], object]]:
    """Show the phase `title` on the run's bar, or on a temporary one if there is none.

    total: its steps, 0 if unknown. Yields a function that counts one step.
    """
    bar = _Run.bar
    if bar is None:
        with progress_bar(total, title, "step", leave=False, disable=not total) as own:
            yield own.update
        return
    if bar.disable:
        yield lambda: None
        return
    before, done = bar.desc, 0

    def advance() -> None:
        nonlocal done
        done += 1
        bar.set_description(f"{title} {done}/{total}")

    bar.set_description(title)
    try:
        yield advance
    finally:
        bar.set_description_str(before)
