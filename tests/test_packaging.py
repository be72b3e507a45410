"""What is installed: one set of facts in setup.py, constraints.txt, environment.yaml, CI and the README."""

import re
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from tests.conftest import PROJECT


def requirements_of_setup():
    """The strings of setup.py's requirement lists, without running it."""
    text = (PROJECT / "setup.py").read_text()
    core, extras = text.split("extras_require")
    found = [Requirement(m) for m in re.findall(r'"([\w-]+>=[\w.]+)"', core.split("install_requires")[1])]
    return found, [Requirement(m) for m in re.findall(r'"([\w-]+>=[\w.]+)"', extras)]


def constraints():
    lines = (PROJECT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_constraints_name_every_requirement_within_its_range():
    pinned = {name.lower().replace("_", "-"): version for name, version in constraints().items()}
    core, test = requirements_of_setup()
    assert len(core) >= 10
    for requirement in core + test:
        assert requirement.specifier.contains(pinned[requirement.name]), requirement
    assert next(r for r in core if r.name == "torch").specifier.contains("2.11.0")


def test_environment_agrees_with_constraints_and_setup():
    environment = yaml.safe_load((PROJECT / "environment.yaml").read_text())
    listed = dict(word.split("==") for word in environment["dependencies"][-1]["pip"] if "==" in word)
    assert listed == {name: version for name, version in constraints().items() if name in listed}
    assert set(listed) == {requirement.name for requirement in requirements_of_setup()[0]}


@pytest.mark.parametrize("name", ["torch", "pytorch-lightning", "diffusers", "transformers", "omegaconf"])
def test_what_runs_here_is_admitted(name):
    requirement = next(r for r in requirements_of_setup()[0] if r.name == name)
    assert requirement.specifier.contains(Version(metadata.version(name)).public)


def test_ci_does_what_the_readme_says():
    """The README's test command, word for word but for where the virtual environment lies."""
    ci = (PROJECT / ".ci" / "run").read_text().replace('"$venv/bin/', ".venv/bin/").replace('" ', " ")
    lines = ci.replace(" --quiet", "").splitlines()
    blocks = re.findall(r"```bash\n(.*?)```", (PROJECT / "README.md").read_text(), re.S)
    command = next(block for block in blocks if "pytest" in block).replace("\\\n", "")
    venv, install, test = (part.strip() for part in command.split("&&"))
    assert venv == "python3 -m venv .venv"
    assert install in lines
    assert test in lines


def test_pre_commit_has_the_pinned_ruff():
    hooks = yaml.safe_load((PROJECT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["rev"] for repo in hooks] == [f"v{constraints()['ruff']}"]


def test_the_repository_holds_what_it_should():
    fixed = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "constraints.txt", "environment.yaml"}
    fixed |= {"assets", "configs", "docs", "ldm", "scripts", "tests", "main.py", "pyproject.toml", "setup.py"}
    present = {path.name for path in PROJECT.iterdir() if not path.name.startswith(".")}
    ignored = {"logs", "outputs", "build", "dist", "ldm.egg-info", "wandb"}
    assert present - ignored == fixed
