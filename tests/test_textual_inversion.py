"""Textual inversion: new tokens train alone or beside a second tuning, and diffusers draws the same pictures."""

import json
import signal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from ldm.formats.lora import LORA_FILE
from ldm.methods.custom_diffusion import DELTAS_FILE
from ldm.methods.dreambooth import DreamBooth
from ldm.methods.load import load_for_sampling
from ldm.methods.textual_inversion import EMBEDDINGS_FILE
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.new_tokens import add_tokens, with_all_vectors
from main import main
from scripts import export, txt2img
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_same_run, at_call, resume, send, state

OVERLAY = str(PROJECT / "configs" / "textual-inversion.yaml")
TOKENS = "model.params.tuning.params.tokens"
TWO_VECTORS = f"{TOKENS}=[{{token: <my-subject>, initial_word: dog, vectors: 2}}]"
BESIDE = "model.params.tuning.params.beside"
LORA = (
    f"{BESIDE}={{target: ldm.methods.adapter.Adapter, params: {{seed: 23, text_encoder_config: null, config:"
    " {target: peft.LoraConfig, params: {r: 4, lora_alpha: 4, target_modules: [to_q, to_v]}}}}"
)
CUSTOM = f"{BESIDE}={{target: ldm.methods.custom_diffusion.CustomDiffusion, params: {{}}}}"
PAIR = ["model.params.prior_loss_weight=1", "model.params.learning_rate=1e-2"]
SHORT = ["lightning.trainer.max_steps=6"]


@pytest.fixture(scope="module")
def trained(tiny_config, tmp_path_factory):
    """`trained("key.sub=value", ...)` trains the tiny recipe under the overlay."""

    def run(*words, expect=0):
        logs = tmp_path_factory.mktemp("tokens")
        code = main(["-b", RECIPE, str(tiny_config), OVERLAY, "-l", str(logs), *QUICK, *words])
        assert code == expect
        return next(logs.iterdir())

    return run


@pytest.fixture(scope="module")
def run(trained):
    """50 steps of two vectors, under weight decay and a high rate."""
    words = ["lightning.trainer.max_steps=50", "model.params.learning_rate=1"]
    words += ["model.params.optimizer.params.weight_decay=0.1", "lightning.callbacks.validation=null"]
    return trained(TWO_VECTORS, *words)


def drawn(out, model, prompt="a photo of <my-subject> on the moon"):
    words = ["--prompt", prompt, "--steps", "4", "--n_samples", "1", "--skip_grid", "--spacing", "base"]
    assert txt2img.main([*words, "--outdir", str(out), "--ckpt", str(model)]) == 0
    return np.asarray(Image.open(next((out / "samples").iterdir()))).astype(int)


def drawn_by(pipeline, prompt="a photo of <my-subject> on the moon"):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(42)
    image = pipeline(prompt, 32, 32, 4, guidance_scale=7.5, generator=generator).images[0]
    return np.asarray(image).astype(int)


def test_only_the_new_rows_change_in_50_steps_and_the_checkpoint_holds_them_alone(run, tiny):
    held = state(run)["state_dict"]
    assert {key: list(value.shape) for key, value in held.items()} == {
        "model.text_encoder.new_tokens": [2, 32]
    }
    base, after = LatentDiffusion.from_base(tiny), load_for_sampling(run).model.state_dict()
    for key, value in base.state_dict().items():
        kept = after[key][: len(value)] if key.endswith("token_embedding.weight") else after[key]
        assert torch.equal(kept, value), key
    table = next(value for key, value in after.items() if key.endswith("token_embedding.weight"))
    rows = table[len(base.tokenizer) :]
    assert torch.equal(rows, held["model.text_encoder.new_tokens"])
    dog = base.tokenizer("dog", add_special_tokens=False).input_ids
    assert len(dog) == 1
    assert (rows - table[dog[0]]).abs().min(dim=1).values.max() > 0
    assert not torch.equal(rows[0], rows[1])  # both began as the class word, and train apart
    assert state(run)["identifier"] == "<my-subject>"


def test_new_rows_begin_as_the_words_tokens_one_after_the_other(tiny):
    model = LatentDiffusion.from_base(tiny)
    encoder, tokenizer = model.text_encoders["text_encoder"], model.tokenizer
    prompts = ["a photo of a dog", "a red house"]
    before = model.embed(prompts).states
    table = add_tokens(encoder, tokenizer, ["<x>", "<x>_1"], [7, 9])
    assert torch.equal(table.rows, table.weight[[7, 9]])
    assert torch.equal(model.embed(prompts).states, before)
    assert with_all_vectors("<x> and a <x>", tokenizer) == "<x> <x>_1 and a <x> <x>_1"
    ids = tokenizer(with_all_vectors("<x>", tokenizer), add_special_tokens=False).input_ids
    assert ids == [len(tokenizer) - 2, len(tokenizer) - 1]


def test_diffusers_draws_the_same_picture_with_the_tokens_and_from_the_whole_model(run, tiny, tmp_path):
    ours = drawn(tmp_path / "run", run, "a photo of [V] on the moon")
    assert abs(ours - drawn(tmp_path / "base", tiny, "a photo of dog on the moon")).max() > 5
    folder = run / "model"
    assert {path.name for path in folder.iterdir()} == {EMBEDDINGS_FILE, "README.md", "dreambooth.json"}
    assert {k: list(v.shape) for k, v in load_file(folder / EMBEDDINGS_FILE).items()} == {
        "<my-subject>": [2, 32]
    }
    assert export.main(["--ckpt", str(run), "--out", str(tmp_path / "whole"), "--dtype", "fp32"]) == 0
    assert abs(ours - drawn(tmp_path / "again", tmp_path / "whole", "a photo of [V] on the moon")).max() <= 1
    pipeline = StableDiffusionPipeline.from_pretrained(tiny)
    pipeline.load_textual_inversion(str(folder))
    whole = StableDiffusionPipeline.from_pretrained(tmp_path / "whole")
    for name, theirs in {"tokens": pipeline, "whole": whole}.items():
        assert abs(ours - drawn_by(theirs)).max() <= 1, name
    added = json.loads((tmp_path / "whole" / "tokenizer" / "added_tokens.json").read_text())
    assert set(added) == {"<my-subject>", "<my-subject>_1"}  # for transformers 4


def test_a_run_that_is_cut_off_goes_on_bit_for_bit(trained, monkeypatch):
    whole = trained(LORA, *PAIR, *SHORT)
    at_call(monkeypatch, DreamBooth, "training_step", {4}, send(signal.SIGTERM))
    cut = trained(LORA, *PAIR, *SHORT, expect=75)
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)


def test_pivotal_tuning_trains_tokens_and_a_lora_each_at_its_own_rate(trained, tiny, tmp_path):
    """The prior's target is the model with its LoRA switched off and its tokens as they were, at no memory."""
    words = [LORA, *PAIR, *SHORT, "model.params.tuning.params.token_learning_rate=0.5"]
    words += ["model.params.prior_target=untrained", TWO_VECTORS]
    run = trained(*words)
    checkpoint = state(run)
    rates = {group["name"]: group["lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]}
    assert rates == {"unet": 1e-2, "tokens": 0.5}
    kinds = {
        "tokens" if "new_tokens" in key else "lora"
        for key in checkpoint["state_dict"]
        if "lora" in key or "new" in key
    }
    assert kinds == {"tokens", "lora"}
    losses = [json.loads(line)["prior_loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert losses[0] == 0
    assert losses[-1] > 0
    names = {path.name for path in (run / "model").iterdir()}
    assert names == {EMBEDDINGS_FILE, LORA_FILE, "README.md", "dreambooth.json"}
    pipeline = StableDiffusionPipeline.from_pretrained(tiny)
    pipeline.load_textual_inversion(str(run / "model"))
    pipeline.load_lora_weights(str(run / "model"), weight_name=LORA_FILE)
    assert abs(drawn(tmp_path / "run", run) - drawn_by(pipeline)).max() <= 1


def test_custom_diffusion_has_its_token(trained):
    run = trained(CUSTOM, *PAIR, *SHORT)
    held = {key.removeprefix("model.") for key in state(run)["state_dict"]}
    assert "text_encoder.new_tokens" in held
    assert all("attn2.to_" in key for key in held - {"text_encoder.new_tokens"})
    names = {path.name for path in (run / "model").iterdir()}
    assert names == {EMBEDDINGS_FILE, DELTAS_FILE, "README.md", "dreambooth.json"}


def test_all_weights_beside_a_token_are_saved_and_loaded(trained, tmp_path):
    beside = f"{BESIDE}={{target: ldm.methods.all_weights.AllWeights, params: {{}}}}"
    run = trained(beside, *PAIR, *SHORT, "lightning.callbacks.validation=null")
    assert (run / "model" / "model_index.json").is_file()
    ours = drawn(tmp_path / "run", run)
    assert abs(ours - drawn(tmp_path / "model", run / "model")).max() <= 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([f"{TOKENS}=[{{token: dog, initial_word: dog}}]"], "'dog' is a token already"),
        ([f"{TOKENS}=[{{token: a dog, initial_word: dog}}]"], "a word without spaces"),
        ([f"{TOKENS}=[]"], "needs a token"),
        ([f"{TOKENS}=[{{token: <x>, word: dog}}]"], "unknown key"),
        (
            ["model.params.learning_rate=0", "model.params.text_encoder_learning_rate=1"],
            "a learning rate above 0",
        ),
    ],
)
def test_wrong_tokens_are_told_in_one_line(tiny, capsys, words, told):
    assert main(["-b", RECIPE, OVERLAY, "-t", "false", "--actual_resume", str(tiny), *words]) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
