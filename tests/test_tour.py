"""The notebook docs/tour.ipynb: its cells, run as a script on the tiny base, and kept without outputs."""

import json
import shutil
import sys

from tests.conftest import PROJECT

NOTEBOOK = json.loads((PROJECT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_the_cells_run(tiny_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT / "docs")
    monkeypatch.setattr(sys, "path", list(sys.path))
    changes = {
        "STEPS = 150": "STEPS = 2",
        'CONFIGS = ["configs/dreambooth.yaml"]': f'CONFIGS = ["configs/dreambooth.yaml", {str(tiny_config)!r}]',
        'LOGS = Path("logs", "tour")': f"LOGS = Path({str(tmp_path)!r})",
    }
    for old, new in changes.items():
        assert old in CELLS[0]
        CELLS[0] = CELLS[0].replace(old, new)
    names: dict = {}
    for cell in CELLS:
        exec(compile(cell, "docs/tour.ipynb", "exec"), names)
    told = capsys.readouterr().out
    assert "all weights              subject loss" in told
    assert "LoRA                     subject loss" in told
    assert (tmp_path / "compare.html").is_file()
    weights = [(names[run] / "checkpoints" / "best.ckpt").stat().st_size for run in ("full", "lora")]
    assert weights[1] < weights[0]
    shutil.rmtree(tmp_path)


def test_it_is_kept_without_outputs():
    assert not [cell for cell in NOTEBOOK["cells"] if cell.get("outputs") or cell.get("execution_count")]
