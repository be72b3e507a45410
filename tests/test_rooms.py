"""Which rooms of the code may import which."""

import ast
import subprocess
import sys
import time

import pytest

from tests.conftest import PROJECT

GROUND = {path.stem for path in (PROJECT / "ldm").glob("*.py")}
ORDER = ("diffusion", "formats", "data", "pages", "models", "methods", "evaluation", "training", "world")
"""From the ground up: a room may import those before it, and the ground."""
CLOSED = {"data": {"diffusion", "formats"}}
"""Imports that the order would allow and that stay forbidden: pictures and their order know no model."""


def may_import(room: str) -> set[str]:
    if room in GROUND:
        return GROUND
    below = ORDER[: ORDER.index(room) + 1]
    return {*GROUND, *below} - CLOSED.get(room, set())


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "ldm").rglob("*.py")), ids=lambda p: str(p.relative_to(PROJECT))
)
def test_rooms_keep_to_their_doors(path):
    room = path.relative_to(PROJECT / "ldm").parts[0].removesuffix(".py")
    if room == "__init__":
        return
    for name in imports_of(path):
        package, _, rest = name.partition(".")
        assert package not in ("main", "scripts", "tests"), f"{path} imports {name}"
        if package == "ldm":
            allowed = may_import(room)
            assert any(rest == door or rest.startswith(door + ".") for door in allowed), (
                f"{room} imports {name}"
            )


SCRIPTS = sorted(f"scripts/{path.name}" for path in (PROJECT / "scripts").glob("*.py"))


@pytest.mark.parametrize("script", ["main.py", *SCRIPTS])
def test_help_is_quick_because_heavy_imports_wait(script):
    """Best of three: other work on the machine slows single starts."""
    seconds = []
    for _ in range(3):
        start = time.monotonic()
        done = subprocess.run([sys.executable, script, "--help"], cwd=PROJECT, capture_output=True, text=True)
        seconds.append(time.monotonic() - start)
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: {script.split('/')[-1]}")
    assert min(seconds) < 1


def test_wandb_is_imported_only_where_it_logs():
    code = (
        "import sys; from main import main;"
        "assert main(['--base', 'configs/dreambooth.yaml', '-t', 'false', 'model.params.base=nowhere']) == 2;"
        "import ldm.training.samples, ldm.methods.dreambooth;"
        "assert 'wandb' not in sys.modules and 'tensorflow' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_main_has_no_classes():
    tree = ast.parse((PROJECT / "main.py").read_text())
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
