"""Training of the embedded feature networks through main: losses by hand, a short run, what it exports."""

import json
import math
from pathlib import Path

import pytest
import torch

from ldm.data.images import image_files, load_image
from ldm.evaluation.features import Clip, Dino
from ldm.training.rows import read_rows
from ldm.world.contrastive import ContrastivePretraining, contrastive_loss
from ldm.world.self_distillation import SelfDistillation, balanced, distillation_loss
from ldm.world.views import Views, WorldViews
from main import main
from scripts.judge_features import main as judge
from tests.conftest import PROJECT
from tests.runs import spoil_loss

LAYERS = "hidden_size: 16, intermediate_size: 32, num_hidden_layers: 1, num_attention_heads: 2"
NETWORK = f"{{{LAYERS}, image_size: 64, patch_size: 16}}"
SIZE = len(json.loads((PROJECT / "assets" / "base" / "tokenizer" / "vocab.json").read_text(encoding="utf-8")))
WORDS = (
    f"vocab_size: {SIZE}, max_position_embeddings: 32, bos_token_id: {SIZE - 2}, eos_token_id: {SIZE - 1},"
    f" pad_token_id: {SIZE - 1}"
)
DOG = PROJECT / "assets" / "subject" / "dog"


def test_equal_captions_are_equally_right():
    logits = torch.tensor([[4.0, 4.0, -9.0], [4.0, 4.0, -9.0], [-9.0, -9.0, 9.0]])
    loss = contrastive_loss(logits, ["a dog", "a dog", "a cat"])
    rows = [math.log(2 * math.e**4 + math.e**-9) - 4, math.log(math.e**9 + 2 * math.e**-9) - 9]
    assert float(loss) == pytest.approx((2 * rows[0] + rows[1]) / 3, abs=1e-6)


def test_no_view_is_compared_with_itself():
    sure = torch.tensor([50.0, 0.0])
    unsure = torch.zeros(2)
    student = torch.stack([sure, unsure, sure])[None]  # two large views and a small one
    answers = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]])
    loss = distillation_loss(student, answers, 1.0)
    # View 0 of the teacher against 1 (log 2) and 2 (0); view 1 against 0 (0) and 2 (0).
    assert float(loss) == pytest.approx(math.log(2) / 4, abs=1e-5)


def test_answers_are_balanced_over_the_prototypes():
    torch.manual_seed(0)
    same = torch.randn(8) + 0.01 * torch.randn(32, 8)  # a network that says nearly the same of everything
    answers = balanced(same, 0.05, iterations=20)
    assert torch.allclose(answers.sum(dim=1), torch.ones(32), atol=1e-5)
    assert torch.allclose(answers.sum(dim=0), torch.full((8,), 4.0), atol=1e-2)


def test_views_are_a_function_of_the_number_alone():
    data = WorldViews(str(PROJECT / "assets" / "world"), batch_size=2, large=2, small=3, small_size=32)
    data.setup("fit")
    first, again, other = Views(data)[5], Views(data)[5], Views(data)[6]
    assert first["large"].shape == (2, 3, 64, 64)
    assert first["small"].shape == (3, 3, 32, 32)
    assert torch.equal(first["large"], again["large"])
    assert not torch.equal(first["large"], other["large"])
    assert first["large"].abs().max() <= 1


def trained(kind: str, tmp_path: Path) -> Path:
    """The run folder of three steps of a tiny network."""
    words = {
        "clip": (
            f"model.params.network={{projection_dim: 8, text_config: {{{LAYERS}, {WORDS}}}, vision_config: {NETWORK}}}",
            f"data.params.cache={tmp_path / 'world'}",
            "data.params.count=12",
            "data.params.batch_size=4",
        ),
        "dino": (f"model.params.network={NETWORK}", "model.params.prototypes=16", "data.params.batch_size=2"),
    }[kind]
    config = str(PROJECT / "configs" / "toy" / f"{kind}.yaml")
    words += ("lightning.trainer.precision=32-true", "lightning.trainer.max_steps=3")
    assert main(["--base", config, "-l", str(tmp_path / kind), "-n", kind, *words]) == 0
    return next((tmp_path / kind).iterdir())


@pytest.mark.parametrize(("kind", "module"), [("clip", ContrastivePretraining), ("dino", SelfDistillation)])
def test_a_step_whose_loss_is_no_number_is_left_out(tmp_path, monkeypatch, capsys, kind, module):
    monkeypatch.chdir(PROJECT)
    spoil_loss(monkeypatch, module, step=2)
    run = trained(kind, tmp_path)
    assert "updates skipped: 1 new, 1 in all" in capsys.readouterr().err
    rows = read_rows(run / "metrics.jsonl")
    assert [row["loss"] == row["loss"] for row in rows] == [True, False, True]


def test_both_train_export_and_are_judged(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(PROJECT)
    clip, dino = trained("clip", tmp_path), trained("dino", tmp_path)

    images = [load_image(path) for path in image_files(DOG)]
    assert Clip(str(clip / "clip")).images(images).shape == (5, 8)
    assert Clip(str(clip / "clip")).texts(["a dog"]).shape == (1, 8)
    assert Dino(str(dino / "dino")).images(images).shape == (5, 16)

    out = tmp_path / "figures.json"
    words = ["--clip", clip / "clip", "--dino", dino / "dino", "--count", 20, "--out", out]
    assert judge(list(map(str, words))) == 0
    assert "AUC" in capsys.readouterr().out
    assert out.is_file()

    assert main(["--resume", str(dino), "lightning.trainer.max_steps=5"]) == 0
    assert (dino / "metrics.jsonl").read_text().count("\n") == 5
