"""Textual inversion: new tokens train alone or beside a second tuning, and diffusers draws the same pictures."""

import json
import signal

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from ldm.config import load_config
from ldm.formats.custom_diffusion import DELTAS_FILE
from ldm.formats.embeddings import EMBEDDINGS_FILE, read_embeddings
from ldm.formats.lora import LORA_FILE
from ldm.methods.dreambooth import DreamBooth
from ldm.methods.load import load_for_sampling
from ldm.methods.parts import Parts, add_parts
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.new_tokens import add_tokens, with_all_vectors
from main import main
from scripts import export, txt2img
from tests import pictures
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


def drawn(out, model, prompt="a photo of <my-subject> on the moon", *words):
    return pictures.drawn(out, model, *words, prompt=prompt)


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
    for written in ("<x>", "<X>"):  # the tokenizer makes no difference between cases
        ids = tokenizer(with_all_vectors(written, tokenizer), add_special_tokens=False).input_ids
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


def test_the_tokens_on_a_base_are_the_runs_own_model(run, tiny, tmp_path):
    """[V] is the run's; drawn again from the picture; merged by export."""
    loaded = load_for_sampling(tiny)
    before = loaded.weights
    add_parts(loaded, Parts(embeds=[str(run / "model")]))
    assert loaded.weights != before
    ours, theirs = loaded.model.state_dict(), load_for_sampling(run).model.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    prompt = "a photo of [V] on the moon"
    picture = drawn(tmp_path / "run", run, prompt)
    assert not (picture - drawn(tmp_path / "base", tiny, prompt, "--embeds", run / "model")).any()
    png = next((tmp_path / "base" / "samples").iterdir())
    assert txt2img.main(["--from-image", str(png), "--outdir", str(tmp_path / "again")]) == 0
    assert not (picture - np.asarray(Image.open(tmp_path / "again" / "samples" / "00000.png"))).any()
    words = ["--ckpt", str(tiny), "--embeds", str(run / "model"), "--out", str(tmp_path / "baked")]
    assert export.main([*words, "--dtype", "fp32"]) == 0
    assert not (picture - drawn(tmp_path / "merged", tmp_path / "baked")).any()


def test_the_files_of_other_tools_are_read(tmp_path):
    """diffusers' pickle, AUTOMATIC1111's pickle and safetensors file, and Stable Diffusion XL's of two encoders."""
    vectors = torch.randn(2, 32)
    torch.save({"<x>": vectors[0]}, tmp_path / "learned_embeds.bin")
    webui = {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.nn.Parameter(vectors)}}
    webui |= {"name": "my-style", "step": 499, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save(webui, tmp_path / "other.pt")
    save_file({"emb_params": vectors}, tmp_path / "by-name.safetensors")
    of_xl = {"clip_l": vectors, "clip_g": torch.randn(2, 48)}
    save_file(of_xl, tmp_path / "xl.safetensors")
    one, two = {"text_encoder": 32}, {"text_encoder": 32, "text_encoder_2": 48}
    for name, widths, token, expected in (
        ("learned_embeds.bin", one, "<x>", {"text_encoder": vectors[:1]}),
        ("other.pt", one, "my-style", {"text_encoder": vectors}),
        ("by-name.safetensors", one, "", {"text_encoder": vectors}),
        ("xl.safetensors", two, "", {"text_encoder": vectors, "text_encoder_2": of_xl["clip_g"]}),
    ):
        own, found = read_embeddings(tmp_path / name, widths)
        assert own == token
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"<x>": torch.ones(2, 7)}, "it is another model's"),
        ({"<x>": torch.ones(2, 2, 32)}, "it is another model's"),
        ({"<x>": torch.full((32,), float("nan"))}, "not finite"),
        ({"<x>": torch.eye(32).to_sparse()}, "not finite numbers"),
        ({"<x>": torch.ones(32, dtype=torch.complex64)}, "not finite numbers"),
        ({"clip_l": torch.ones(32), "clip_g": torch.ones(32)}, "2 text encoder"),
        ({"a": torch.ones(32), "b": torch.ones(32)}, "no file of textual inversion"),
        ({"a dog": torch.ones(32)}, "a word without spaces"),
        ({"dog": torch.ones(32)}, "'dog' is a token already"),
    ],
)
def test_files_that_are_no_tokens_for_the_model_are_refused(tiny, tmp_path, capsys, content, told):
    path = tmp_path / "x.pt"
    torch.save(content, path)
    words = ["--ckpt", str(tiny), "--embeds", str(path), "--outdir", str(tmp_path / "out")]
    assert txt2img.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_token_gets_another_name_and_stands_beside_others(run, tiny, tmp_path):
    words = ["--embeds", f"{run / 'model' / EMBEDDINGS_FILE}:<other>"]
    whole = drawn(tmp_path / "one", run, "a photo of <my-subject> on the moon")
    renamed = drawn(tmp_path / "two", tiny, "a photo of <other> on the moon", *words)
    assert not (whole - renamed).any()
    both = drawn(tmp_path / "three", run, "a photo of <other> on the moon", *words)  # beside the run's own
    assert not (whole - both).any()


def test_the_originals_prompts(trained, capsys):
    templates = str(PROJECT / "configs" / "templates.yaml")
    prompts = load_config([RECIPE, templates])["data"]["params"]["templates"]
    assert len(set(prompts)) == 27
    assert all(prompt.count("[V]") == 1 for prompt in prompts)
    trained(f"data.params.templates={json.dumps(prompts)}", "lightning.trainer.max_steps=2")
    assert "one of 27 templates for it" in capsys.readouterr().out


def test_a_run_that_is_cut_off_goes_on_bit_for_bit(trained, monkeypatch):
    whole = trained(LORA, *PAIR, *SHORT)
    at_call(monkeypatch, DreamBooth, "training_step", {4}, send(signal.SIGTERM))
    cut = trained(LORA, *PAIR, *SHORT, expect=75)
    monkeypatch.undo()
    assert resume(cut) == 0
    assert_same_run(cut, whole)


def test_pivotal_tuning_trains_tokens_and_a_lora_each_at_its_own_rate(trained, tiny, tmp_path, capsys):
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
    capsys.readouterr()
    drawn(tmp_path / "lora", tiny, "a dog", "--lora", f"{run / 'model'}:0.5")
    assert f"add --embeds {run / 'model'}" in capsys.readouterr().err
    drawn(tmp_path / "token", tiny, "a dog", "--embeds", run / "model")
    assert (
        f"has {LORA_FILE}, which is not in the model: add --lora {run / 'model'}" in capsys.readouterr().err
    )
    assert export.main(["--ckpt", str(run), "--form", "lora", "--out", str(tmp_path / "dog")]) == 0
    assert "does not hold the run's new tokens" in capsys.readouterr().err


def test_custom_diffusion_has_its_token(trained, tmp_path, capsys):
    run = trained(CUSTOM, *PAIR, *SHORT)
    held = {key.removeprefix("model.") for key in state(run)["state_dict"]}
    assert "text_encoder.new_tokens" in held
    assert all("attn2.to_" in key for key in held - {"text_encoder.new_tokens"})
    names = {path.name for path in (run / "model").iterdir()}
    assert names == {EMBEDDINGS_FILE, DELTAS_FILE, "README.md", "dreambooth.json"}
    assert export.main(["--ckpt", str(run), "--form", "lora", "--out", str(tmp_path / "dog")]) == 0
    assert "does not hold the run's new tokens" in capsys.readouterr().err


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
        (["model.params.identifier=auto"], "no training prompt contains the token 'auto'"),
        (
            [f"{TOKENS}=[{{token: <x>, initial_word: dog}}]", "model.params.identifier=sks"],
            "no training prompt contains the token '<x>'",
        ),
        (
            [f"{TOKENS}=[{{token: <d-x>, initial_word: dog}}, {{token: <dx>, initial_word: dog}}]"],
            "make them differ",
        ),
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
