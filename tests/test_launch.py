"""Processes of srun or torchrun connect before anything is written, and none waits for one that has ended."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from pytorch_lightning.plugins.environments import LightningEnvironment, SLURMEnvironment

from ldm.config import load_config
from ldm.errors import UserError
from ldm.training.build import build
from ldm.training.launch import FOLDER_VARIABLE, Launch
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, state

TWO = (*QUICK, "lightning.trainer.devices=2", "data.params.batch_size=1", "lightning.trainer.max_steps=3")
SLOWEST = 300
"""Seconds after which a process hangs: gloo would wait half an hour for another one."""
AT_ONCE = (
    "import sys; from ldm.training import launch; launch.NOTICE_AFTER = 0.0;"
    "from main import main; sys.exit(main(sys.argv[1:]))"
)
"""main.py, which says at once that it waits for other processes."""


def srun_environment(rank: int, port: int = 29500) -> dict[str, str]:
    """The environment variables that srun sets for task `rank` of two."""
    return {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_NNODES": "1",
        "SLURM_PROCID": str(rank),
        "SLURM_LOCALID": str(rank),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "train",
        "MASTER_PORT": str(port),
    }


def srun(*words: str, ranks=(0, 1), program=("main.py",)) -> list[subprocess.Popen]:
    """Tasks of srun, each a process of `program` with the command line `words`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, *program, *words],
            cwd=PROJECT,
            env=os.environ | srun_environment(rank, port) | {"PYTHONPATH": str(PROJECT)},
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]


def ends_of(processes) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    try:
        told = [process.communicate(timeout=SLOWEST) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *streams) for process, streams in zip(processes, told, strict=True)]


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def words(tiny_config, logs):
    return ("-b", RECIPE, str(tiny_config), "-l", str(logs), "-n", "two", *TWO)


@pytest.fixture(scope="module")
def run(words, logs):
    """A run of two tasks of srun."""
    (code, out, told), (other_code, other_out, other_told) = ends_of(srun(*words))
    assert (code, other_code) == (0, 0), told + other_told
    assert "the model is in" in out
    assert not other_out
    assert [path.name for path in logs.iterdir()] == ["dogjob-4711_two"]  # one folder for both
    return logs / "dogjob-4711_two"


def test_two_tasks_of_srun_train_one_run(run):
    assert [json.loads(row)["step"] for row in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3]
    last = state(run)
    assert last["global_step"] == 3
    assert last["samples_per_step"] == 2
    assert [path.name for path in (run / "configs").glob("start-*")] == ["start-000.json"]


def test_a_mistake_that_only_the_first_finds_ends_both(run, words):
    """The folder exists already: only rank 0 knows, and the other waits for it."""
    (code, _, told), (other_code, _, other_told) = ends_of(srun(*words))
    assert (code, other_code) == (2, 2), told + other_told
    assert told.count("error: ") == 1
    assert "exists: choose another --name" in told
    assert "error: " not in other_told  # said once


def test_a_mistake_that_all_find_is_said_once(words):
    ends = ends_of(srun(*words, "model.params.learning_rat=1"))
    assert [code for code, *_ in ends] == [2, 2]
    assert sum(told.count("did you mean 'learning_rate'") for *_, told in ends) == 1


def test_sigterm_ends_a_process_that_waits_for_another(run, words):
    """A new run cannot be resumed yet; a resume can."""
    starting = srun(*words, ranks=[0], program=("-c", AT_ONCE))
    resuming = srun("--resume", str(run), ranks=[1], program=("-c", AT_ONCE))
    for process in starting + resuming:
        assert "for 2 processes in all" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
    ends = ends_of(starting + resuming)
    assert [code for code, *_ in ends] == [-signal.SIGTERM, 75], ends


@pytest.fixture
def launched(monkeypatch):
    """`launched({name: value})`: the Launch of this process with these variables in its environment."""

    def launch(variables: dict[str, str]) -> Launch:
        for name in [
            name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC", "LOCAL_RANK"))
        ]:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Launch.of_this_process()

    return launch


@pytest.mark.parametrize("rank", [0, 1])
def test_tasks_of_srun(launched, rank):
    launch = launched(srun_environment(rank))
    assert isinstance(launch.environment, SLURMEnvironment)
    assert not launch.environment.auto_requeue
    assert launch.external
    assert launch.is_first == (rank == 0)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        srun_environment(0) | {"SLURM_NTASKS": "1", "SLURM_NTASKS_PER_NODE": "1"},
        srun_environment(0) | {"SLURM_JOB_NAME": "interactive"},
    ],
)
def test_a_single_task_may_start_processes_itself(launched, variables):
    launch = launched(variables)
    assert isinstance(launch.environment, LightningEnvironment)
    assert not launch.environment.creates_processes_externally
    assert launch.is_first
    launch.meet()  # no process to wait for


def test_what_lightning_started(launched):
    launch = launched({FOLDER_VARIABLE: '["logs/run", 7]', "LOCAL_RANK": "1"})
    assert launch.by_lightning
    assert not launch.is_first
    with launch.shared(None, None) as (folder, step):
        assert (str(folder), step) == ("logs/run", 7)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"SLURM_NTASKS_PER_NODE": ""}, "ntasks-per-node=2"),
        ({"SLURM_PROCID": "one"}, "launcher"),
    ],
)
def test_a_launcher_whose_words_are_amiss(launched, monkeypatch, variables, told):
    environment = {k: v for k, v in (srun_environment(0) | variables).items() if v}
    with pytest.raises(UserError, match=told):
        assert launched(environment).is_first


@pytest.mark.parametrize(
    ("variables", "words", "told"),
    [
        (srun_environment(0), [], r"devices \(1\) x num_nodes \(1\) is 1, but the launcher started 2"),
        ({"LOCAL_RANK": "1"}, ["devices=2"], "LOCAL_RANK is set by an unknown launcher"),
        ({}, ["num_nodes=2"], "start a run on several nodes with srun or torchrun"),
        (
            srun_environment(0) | {"SLURM_NTASKS_PER_NODE": "1", "SLURM_NNODES": "2"},
            ["devices=2"],
            "does not match",
        ),
    ],
)
def test_processes_that_the_trainer_does_not_expect(
    launched, tiny_config, tmp_path, monkeypatch, variables, words, told
):
    monkeypatch.chdir(PROJECT)
    launch = launched(variables)
    config = load_config([RECIPE, tiny_config], [*QUICK, *(f"lightning.trainer.{word}" for word in words)])
    with pytest.raises(UserError, match=told):
        build(config, tmp_path / "run", launch=launch)
    assert not (tmp_path / "run").exists()
