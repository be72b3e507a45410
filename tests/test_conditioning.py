"""Conditioning and optimization: separate learning rates, schedules, optimizers by target, identifiers."""

import sys

import pytest
import torch

from ldm.formats.diffusers_folder import load_tokenizer
from ldm.models.identifier import resolve_identifier
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.text_conditioning import tokenize
from main import main
from tests.conftest import PROJECT, RECIPE


def groups(run):
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    return {group["name"]: group for group in state["optimizer_states"][0]["param_groups"]}


def test_text_encoder_and_unet_have_their_own_learning_rates(train):
    rates = groups(train("model.params.learning_rate=1e-3", "model.params.text_encoder_learning_rate=1e-5"))
    assert rates["unet"]["lr"] == 1e-3
    assert rates["text_encoder"]["lr"] == 1e-5


def test_a_schedule_with_warm_up_goes_over_the_runs_steps(train):
    words = [
        "model.params.lr_schedule=linear",
        "model.params.lr_warmup_steps=4",
        "model.params.learning_rate=1e-3",
    ]
    run = train(
        *words,
        "lightning.callbacks.checkpoint.params.keep=9",
        "lightning.callbacks.checkpoint.params.every_steps=1",
    )
    rates = {}
    for path in (run / "checkpoints").glob("*.ckpt"):
        state = torch.load(path, weights_only=True)
        if "optimizer_states" in state:
            rates[state["global_step"]] = state["optimizer_states"][0]["param_groups"][0]["lr"]
    assert rates[2] == pytest.approx(0.5e-3)  # after two of four steps of warm-up
    assert rates[4] == pytest.approx(1e-3)
    assert rates[7] == pytest.approx(0.5e-3)  # half-way from step 4 to step 10
    assert rates[10] == 0


def test_an_optimizer_by_target(train):
    run = train(
        "model.params.optimizer.target=torch.optim.SGD", "model.params.optimizer.params={momentum: 0.5}"
    )
    assert groups(run)["unet"]["momentum"] == 0.5


def test_an_optimizer_that_is_not_installed_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    code = main(["--base", RECIPE, str(PROJECT / "configs" / "low-memory.yaml"), "-t", "false"])
    assert code == 2
    assert "cannot import target 'bitsandbytes.optim.AdamW8bit'" in capsys.readouterr().err


@torch.no_grad()
def test_clip_skip_conditions_on_the_layer_before_through_the_final_norm(tiny):
    model = LatentDiffusion.from_base(tiny, clip_skip=2).eval()
    ids = tokenize(model.tokenizer, ["a photo of a dog"], model.text_window)
    hidden = model.text_encoder(ids, output_hidden_states=True).hidden_states
    norm = dict(model.text_encoder.named_modules())
    final = next(module for name, module in norm.items() if name.endswith("final_layer_norm"))
    assert torch.equal(model.embed(["a photo of a dog"]).states, final(hidden[-2]))


@torch.no_grad()
def test_the_frozen_copy_is_the_model_in_the_named_precision(tiny):
    model = LatentDiffusion.from_base(tiny)
    frozen = model.frozen_copy(torch.bfloat16)
    assert frozen.unet.dtype == frozen.text_encoder.dtype == torch.bfloat16
    assert frozen.vae is model.vae
    for before, after in zip(model.unet.parameters(), frozen.unet.parameters(), strict=True):
        assert torch.equal(before.bfloat16(), after)
        assert not after.requires_grad
        assert before.requires_grad
    same = model.frozen_copy(torch.float32)
    assert all(
        a.data_ptr() != b.data_ptr()
        for a, b in zip(model.unet.parameters(), same.unet.parameters(), strict=True)
    )


def test_auto_takes_a_rare_token_that_reads_back(tiny):
    tokenizer = LatentDiffusion.from_base(tiny).tokenizer
    identifier = resolve_identifier("auto", tokenizer, seed=23)
    assert len(tokenizer(identifier, add_special_tokens=False).input_ids) == 1
    assert resolve_identifier("auto", tokenizer, seed=23) == identifier


@pytest.mark.parametrize(
    ("identifier", "warns"), [("ohwx", False), ("sks", False), ("dog", True), ("backpack", True)]
)
def test_an_ordinary_word_as_identifier_is_warned_of(identifier, warns, recwarn):
    tokenizer = load_tokenizer(PROJECT / "configs" / "stable-diffusion" / "v1")
    assert resolve_identifier(identifier, tokenizer, seed=23) == identifier
    assert any("looks like a word" in str(w.message) for w in recwarn) == warns
