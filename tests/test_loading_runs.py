"""A run's checkpoint must contain exactly the trained weights; else it is an error, before sampling or resuming."""

import shutil

import pytest
import torch

from ldm.errors import UserError
from ldm.methods.load import load_for_sampling
from main import main
from tests.conftest import RECIPE
from tests.runs import QUICK, resume, state

ONE_STEP = (
    *QUICK,
    "lightning.callbacks.validation=null",
    "lightning.trainer.max_steps=1",
    "model.params.prior_loss_weight=0",
)
CONV = "model.unet.conv_in.weight"


@pytest.fixture(scope="module")
def finished(tiny_config, tmp_path_factory):
    """A run of one step. Copy it before you change it."""
    logs = tmp_path_factory.mktemp("finished")
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), *ONE_STEP]) == 0
    return next(logs.iterdir())


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def damaged(tensors: dict, damage: str) -> dict:
    """A state dict with a single flaw."""
    value = tensors[CONV]
    changed = {
        "empty": {},
        "missing": {key: value for key, value in tensors.items() if key != CONV},
        "left over": {**tensors, "model.unet.strange": value},
        "of the frozen VAE": {**tensors, "model.vae.quant_conv.bias": torch.zeros(8)},
        "of another shape": {**tensors, CONV: value[:, :3]},
        "integers": {**tensors, CONV: value.long()},
        "complex": {**tensors, CONV: value + 1j},
        "not finite": {**tensors, CONV: torch.full_like(value, float("nan"))},
    }
    return changed[damage]


DAMAGES = {
    "empty": r"\d+ missing",
    "missing": "1 missing .*unet.conv_in.weight",
    "left over": "1 left over .*unet.strange",
    "of the frozen VAE": "1 left over .*vae.quant_conv.bias",
    "of another shape": r"of another shape .*\[8, 3, 3, 3\] instead of \[8, 4, 3, 3\]",
    "integers": "1 not floating-point numbers .*int64",
    "complex": "1 not floating-point numbers .*complex64",
    "not finite": "not finite .*unet.conv_in.weight",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_lacks_or_spoils_what_was_trained_is_not_sampled(run, damage):
    path = run / "checkpoints" / "last.ckpt"
    content = state(run)
    torch.save({**content, "state_dict": damaged(content["state_dict"], damage)}, path)
    for place in (run, path):
        with pytest.raises(UserError, match=DAMAGES[damage]) as caught:
            load_for_sampling(place)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", ["empty", "missing", "of another shape", "not finite"])
def test_nor_is_it_resumed(run, damage, capsys):
    path = run / "checkpoints" / "last.ckpt"
    content = state(run)
    torch.save({**content, "state_dict": damaged(content["state_dict"], damage)}, path)
    capsys.readouterr()
    assert resume(run, "lightning.trainer.max_steps=2") == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    assert not any("Traceback" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "absent"),
    [
        (("model.params.text_encoder_learning_rate=0",), "model.text_encoder."),
        (("model.params.clip_skip=2",), "model.text_encoder.encoder.layers.1."),
        (("model.params.learning_rate=0", "model.params.text_encoder_learning_rate=1e-6"), "model.unet."),
    ],
)
def test_what_a_run_left_frozen_is_not_missed(tiny_config, tmp_path, words, absent):
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(tmp_path), *ONE_STEP, *words]) == 0
    run = next(tmp_path.iterdir())
    learned = state(run)["state_dict"]
    assert not [key for key in learned if key.startswith(absent)]
    model = load_for_sampling(run).model
    ours = dict(model.named_parameters())
    assert all(torch.equal(ours[key.removeprefix("model.")], value) for key, value in learned.items())


def test_a_run_without_a_checkpoint_says_so(tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "config.yaml").write_text("{}")
    with pytest.raises(
        UserError, match=r"no checkpoint in .*checkpoints yet; continue the run with --resume"
    ):
        load_for_sampling(tmp_path)
