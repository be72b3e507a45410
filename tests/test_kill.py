"""Real processes, killed at any moment and resumed until they finish: bit for bit the result of an unkilled run."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import PROJECT, RECIPE
from tests.runs import assert_same_run

PHASES = ("start", "prior", "training", "saving", "export", "any")
SLOWEST = 120
"""Most seconds that a process may take from start to end."""


class Harness:
    """Starts a run, ends it, and resumes it."""

    def __init__(self, logs: Path, words: tuple[str, ...], launcher: tuple[str, ...] = ()):
        self.logs, self.words, self.launcher = logs, words, launcher
        self.seconds = 10.0  # of a whole process, as of the last that was not disturbed

    @property
    def run(self) -> Path | None:
        """The run folder, once it can be resumed."""
        return next((path.parents[1] for path in self.logs.glob("*/configs/config.yaml")), None)

    def start(self) -> subprocess.Popen:
        words = ["--resume", str(self.run)] if self.run else ["-b", RECIPE, *self.words, "-l", str(self.logs)]
        return subprocess.Popen(
            [sys.executable, *self.launcher, "tests/slow_disk.py", *words],
            cwd=PROJECT,
            env=os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def finish(self) -> Path:
        """Let the run finish; its duration is the range of the next kill."""
        start = time.monotonic()
        code, told = self.end_of(self.start())
        assert code == 0, told
        self.seconds = time.monotonic() - start
        return self.run

    def strike(
        self, draw: random.Random, phase: str, number: signal.Signals, rank: int = 0, group: bool = False
    ) -> int | None:
        """Start a process and send it a signal in `phase`; its exit code, or None if it had finished before."""
        process = self.start()
        for _ in self.until(self.moment(draw, phase), process):
            time.sleep(0.001)
        for _ in self.until(lambda: rank == 0 or child_of(process.pid) is not None, process):
            time.sleep(0.001)
        victim = process.pid if rank == 0 else child_of(process.pid)
        if process.poll() is None and victim:
            with contextlib.suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(victim, number)
        code, told = self.end_of(process)
        if code == 0:
            return None
        assert code in (-number, -signal.SIGKILL, 75) or self.launcher, f"exit code {code}\n{told}"
        return code

    def moment(self, draw: random.Random, phase: str) -> Callable[[], bool]:
        """A predicate that becomes true at a random moment of `phase`."""
        sooner = time.monotonic() + draw.uniform(0, 0.4 * self.seconds)
        later = time.monotonic() + draw.uniform(0, self.seconds)
        run = next(self.logs.glob("*"), None)
        rows = count_rows(run)
        chunks = len(list(run.glob("prior/*"))) if run else 0
        nth = draw.randrange(1, 5)
        return {
            "start": lambda: time.monotonic() > sooner,
            "prior": lambda: len(list(self.logs.glob("*/prior/*"))) > chunks or count_rows(self.run) > rows,
            "training": lambda: count_rows(self.run) >= rows + nth,
            "saving": lambda: bool(list(self.logs.glob("*/checkpoints/.*.tmp"))),
            "export": lambda: bool(list(self.logs.glob("*/.model.tmp"))),
            "any": lambda: time.monotonic() > later,
        }[phase]

    def until(self, moment: Callable[[], bool], process: subprocess.Popen) -> Iterator[None]:
        while process.poll() is None and not moment():
            yield

    def end_of(self, process: subprocess.Popen) -> tuple[int, str]:
        """Exit code and stderr, after every process of the run has ended by itself."""
        told = process.communicate(timeout=SLOWEST)[1].decode()
        deadline = time.monotonic() + 30
        while group_lives(process.pid):
            assert time.monotonic() < deadline, f"a process of the run outlives its first one\n{told}"
            time.sleep(0.05)
        return process.returncode, told


def count_rows(run: Path | None) -> int:
    with contextlib.suppress(OSError, TypeError):  # the run may not be there yet
        return (run / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def child_of(pid: int) -> int | None:
    """The second process, started by the first one, `pid`; None until it exists."""
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"LOCAL_RANK=1" in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                return int(child)
    return None


def group_lives(pid: int) -> bool:
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def words(tiny_config) -> tuple[str, ...]:
    return (
        str(tiny_config),
        "lightning.logger=null",
        "lightning.callbacks.loss_record.params.flush_every_steps=1",
        "lightning.callbacks.checkpoint.params={every_steps: 3, keep: 2}",
    )


@pytest.fixture(scope="module")
def whole(words, tmp_path_factory) -> Path:
    return Harness(tmp_path_factory.mktemp("whole"), words).finish()


def test_three_kills(words, whole, tmp_path):
    """While prior samples are drawn, in training, and while the model is written."""
    harness = Harness(tmp_path, words)
    codes = [
        harness.strike(random.Random(0), phase, signal.SIGKILL) for phase in ("prior", "training", "export")
    ]
    assert codes == [-9, -9, -9]
    assert_same_run(harness.finish(), whole)
    assert_no_leftovers(harness.run)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_many_kills(words, whole, tmp_path, seed, record_property):
    """At least eight kills per seed, in every phase, with a new run folder for each seed."""
    draw, kills, ends = random.Random(seed), [], 0
    while len(kills) < 8:
        harness = Harness(tmp_path / str(ends), words)
        for phase in draw.sample(PHASES, len(PHASES)):
            code = harness.strike(draw, phase, signal.SIGKILL)
            if code is None:
                break
            kills.append((phase, code))
        assert_same_run(harness.finish(), whole)
        assert_no_leftovers(harness.run)
        ends += 1
    print(f"seed {seed}: {len(kills)} kills over {ends} runs: {kills}")
    record_property("kills", len(kills))


@pytest.fixture(scope="module")
def two(words) -> tuple[str, ...]:
    return (*words, "lightning.trainer.devices=2", "data.params.batch_size=1")


@pytest.fixture(scope="module")
def whole_of_two(two, tmp_path_factory) -> Path:
    return Harness(tmp_path_factory.mktemp("two"), two).finish()


def test_two_processes_one_killed(two, whole_of_two, tmp_path):
    harness = Harness(tmp_path, two)
    assert harness.strike(random.Random(1), "training", signal.SIGKILL, rank=1) in (75, -9)
    assert_same_run(harness.finish(), whole_of_two)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_either_ended_in_any_phase(two, whole_of_two, tmp_path, number, rank):
    draw, codes, ends = random.Random(rank), [], 0
    while len(codes) < 5:
        harness = Harness(tmp_path / str(ends), two)
        for phase in ("start", "prior", "training", "saving", "any"):
            code = harness.strike(draw, phase, number, rank)
            if code is None:
                break
            codes.append((phase, code))
        assert_same_run(harness.finish(), whole_of_two)
        assert_no_leftovers(harness.run)
        ends += 1
    print(f"rank {rank}, {number.name}: {len(codes)} over {ends} runs: {codes}")


def test_ctrl_c_of_a_terminal_reaches_the_loader_processes_too(words, whole, tmp_path):
    """They finish the current step, and end with the run."""
    harness = Harness(tmp_path, (*words, "data.params.num_workers=2"))
    assert harness.strike(random.Random(3), "training", signal.SIGINT, group=True) == 75
    assert_same_run(harness.finish(), whole)


@pytest.mark.slow
def test_torchrun(two, whole_of_two, tmp_path):
    """A run that torchrun starts is terminated, and resumed by torchrun."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    harness = Harness(tmp_path, two, torchrun)
    assert harness.strike(random.Random(1), "training", signal.SIGTERM) is not None
    assert_same_run(harness.finish(), whole_of_two)
    assert len(list(tmp_path.iterdir())) == 1  # one folder for both processes


def assert_no_leftovers(run: Path) -> None:
    assert not list(run.rglob(".*.tmp"))
    assert (run / "model" / "dreambooth.json").is_file()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "state-000009.ckpt",
    ]
