"""Adapters through peft: they start as the base, train like peft's own, and leave the base unchanged."""

import json
import re
import signal
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.optim import AdamW

from ldm.config import load_config
from ldm.data.batch import collate
from ldm.data.datamodule import TrainingSamples
from ldm.errors import UserError
from ldm.methods.adapter import Adapter
from ldm.methods.adapter_layers import adapter_layers
from ldm.methods.all_weights import AllWeights
from ldm.methods.dreambooth import DreamBooth
from ldm.methods.load import load_for_sampling
from ldm.methods.tuning import tuning_of
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.randomness import generator
from ldm.training.build import build
from ldm.training.rows import read_rows
from main import main
from scripts import evaluate
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_same_run, at_call, resume, send, state
from tests.tiny_features import tiny_features

LORA = str(PROJECT / "configs" / "lora.yaml")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "proj_in"]
"""Linear layers, and a convolution of 1 x 1."""
TEXT_LAYERS = ["q_proj", "v_proj"]
KINDS = {
    "lora": {"target": "peft.LoraConfig", "params": {"r": 4, "rank_pattern": {"conv1": 2}}},
    "rslora": {"target": "peft.LoraConfig", "params": {"use_rslora": True, "init_lora_weights": "gaussian"}},
    "dora": {"target": "peft.LoraConfig", "params": {"r": 4, "use_dora": True}},
    "loha": {"target": "peft.LoHaConfig", "params": {"r": 4}},
    "lokr": {"target": "peft.LoKrConfig", "params": {"r": 4}},
    "oft": {"target": "peft.OFTConfig", "params": {"oft_block_size": 4}},
}


def adapter(kind: str = "lora", seed: int = 5, text: bool = True, **rates) -> Adapter:
    """A tuning, built from a config."""
    node = KINDS[kind]
    config, text_config = (
        {**node, "params": {**node["params"], "target_modules": layers}}
        for layers in (ATTENTION if kind == "oft" else [*ATTENTION, "conv1"], TEXT_LAYERS)
    )
    if text and kind == "lora":
        text_config["params"].pop("rank_pattern")
    params = {"config": config, "text_encoder_config": text_config if text else None, "seed": seed}
    return tuning_of(
        {
            "tuning": {"target": "ldm.methods.adapter.Adapter", "params": params},
            "learning_rate": 1e-3,
            **rates,
        }
    )


def prediction(model: LatentDiffusion) -> torch.Tensor:
    """The prediction of `model` for two fixed noisy latents."""
    noise = torch.randn(2, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.predict(noise, torch.tensor([10, 700]), model.embed(["a dog", "a photo of a cat"]))


def disturb(model: LatentDiffusion) -> None:
    """Change the trained weights."""
    draws = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=draws)


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_starts_as_the_base_and_switches_off_to_it(tiny, kind):
    base, model = LatentDiffusion.from_base(tiny), LatentDiffusion.from_base(tiny)
    tuning = adapter(kind)
    tuning.attach(model)
    error = (prediction(model) - prediction(base)).abs().max()
    assert error == 0 if kind in ("lora", "rslora", "loha", "lokr") else error < 1e-6
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert any("proj_in" if kind == "oft" else "conv1" in name for name in trained)
    assert any("text_encoder" in name for name in trained)
    assert not [name for name in trained if "base_layer" in name]
    disturb(model)
    assert (prediction(model) - prediction(base)).abs().max() > 1e-4
    model.unet.train()
    with tuning.untrained(model, torch.float32)() as untrained:
        assert untrained is model
        assert not model.unet.training
        assert torch.equal(prediction(untrained), prediction(base))
    assert model.unet.training
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained
    lower = torch.bfloat16  # another precision takes a copy
    with tuning.untrained(model, lower)() as untrained, AllWeights(1e-3).untrained(base, lower)() as copy:
        assert torch.equal(prediction(untrained), prediction(copy))


def test_the_first_weights_are_keyed_to_the_seed(tiny):
    learned = []
    for seed, before in ((5, 1), (5, 2), (6, 1)):
        model = LatentDiffusion.from_base(tiny)
        torch.manual_seed(before)
        tuning = adapter(seed=seed)
        tuning.attach(model)
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(before)))
        learned.append(tuning.learned(model))
    one, same, other = learned
    assert one.keys() == same.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, same[name])
        assert "lora_A" not in name or not torch.equal(value, other[name])


@pytest.mark.parametrize(
    ("words", "networks"), [({}, {"unet"}), ({"text": True, "text_encoder_learning_rate": 0}, {"unet"})]
)
def test_the_text_encoders_adapter_may_be_left_out(tiny, words, networks):
    model = LatentDiffusion.from_base(tiny)
    tuning = adapter(**{"text": False, **words})
    tuning.attach(model)
    assert {name.partition(".")[0] for name in tuning.learned(model)} == networks
    assert [group["name"] for group in tuning.parameter_groups(model)] == ["unet"]


def test_layers_that_condition_nothing_get_no_adapter(tiny):
    model = LatentDiffusion.from_base(tiny, clip_skip=2)
    tuning = adapter()
    tuning.attach(model)
    assert not [name for name, _ in adapter_layers(model) if "encoder.layers.1." in name]
    assert not [name for name in tuning.learned(model) if "encoder.layers.1." in name]
    prediction_with_gradients(model).square().mean().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def prediction_with_gradients(model: LatentDiffusion) -> torch.Tensor:
    noise = torch.randn(2, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    return model.predict(noise, torch.tensor([10, 700]), model.embed(["a dog", "a photo of a cat"]))


@pytest.mark.parametrize("change", ["checkpointing", "compile", "bf16"])
def test_gradients_with_checkpointing_compiled_blocks_and_a_base_in_bf16(tiny, change):
    gradients = {}
    for changed in (False, True):
        model = LatentDiffusion.from_base(tiny)
        if changed and change == "bf16":
            for network in model.trainable.values():
                network.to(torch.bfloat16)
        if changed and change == "checkpointing":
            model.enable_gradient_checkpointing()
        tuning = adapter()
        tuning.attach(model)
        disturb(model)
        for network in model.trainable.values():
            network.train()
        if changed and change == "compile":
            model.compile_blocks(backend="aot_eager")
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {p.dtype for p in trained.values()} == {torch.float32}
        prediction_with_gradients(model).square().mean().backward()
        gradients[changed] = {name: p.grad for name, p in trained.items()}
        if changed and change == "compile":  # switched off, it is the base in the compiled graphs too
            with tuning.untrained(model, torch.float32)():
                torch.testing.assert_close(prediction(model), prediction(LatentDiffusion.from_base(tiny)))
    for name, gradient in gradients[False].items():
        assert gradient.abs().sum() > 0, name
        if change == "bf16":
            assert torch.cosine_similarity(gradients[True][name].flatten(), gradient.flatten(), dim=0) > 0.99
        else:
            torch.testing.assert_close(gradients[True][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("params", "told"),
    [
        ({"target_modules": ["to_x"]}, "LoraConfig on UNet2DConditionModel: Target modules"),
        ({"target_modules": ["(a+)+$"]}, "must be a list of ends of layer names"),
        ({"target_modules": "all-linear"}, "must be a list of ends of layer names"),
        (
            {"target_modules": ["to_q"], "r": 0},
            "config.params.r is 0: it must be a whole number of at least 1",
        ),
        (
            {"target_modules": ["to_q"], "rank_pattern": {"(a+)+$": 2}},
            "rank_pattern is .* it must be ends of",
        ),
        ({"target_modules": ["to_q"], "lora_dropout": 0.1}, "unknown key .*lora_dropout"),
        ({"target_modules": ["to_q"], "megatron_core": "os"}, "unknown key .*megatron_core"),
        ({"target_modules": ["to_q"], "megatron_config": {}}, "unknown key .*megatron_config"),
        ({"target_modules": ["to_q"], "layer_replication": [[0, 1]]}, "unknown key .*layer_replication"),
        ({"target_modules": ["to_q"], "loftq_config": {"loftq_bits": 4}}, "unknown key .*loftq_config"),
        ({"target_modules": ["to_q"], "modules_to_save": ["conv_in"]}, "unknown key .*modules_to_save"),
        ({"target_modules": ["to_q"], "init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
        ({"target_modules": ["to_q"], "init_lora_weights": False}, "init_lora_weights is false"),
    ],
)
def test_what_peft_must_not_be_told_is_refused(tiny, params, told):
    node = {"target": "peft.LoraConfig", "params": params}
    tuning = {"target": "ldm.methods.adapter.Adapter", "params": {"config": node, "seed": 1}}
    with pytest.raises(UserError, match=told):
        tuning_of({"tuning": tuning, "learning_rate": 1e-3}).attach(LatentDiffusion.from_base(tiny))


def test_oft_of_wide_convolutions_is_refused(tiny):
    """With peft 0.21 its predictions differ from the base's before any training."""
    node = {"target": "peft.OFTConfig", "params": {"target_modules": ["to_q", "conv1"], "oft_block_size": 4}}
    tuning = {"target": "ldm.methods.adapter.Adapter", "params": {"config": node, "seed": 1}}
    with pytest.raises(UserError, match="conv1 is a convolution larger than 1 x 1"):
        tuning_of({"tuning": tuning, "learning_rate": 1e-3}).attach(LatentDiffusion.from_base(tiny))


@pytest.mark.parametrize(
    "target", ["peft.PeftModel", "peft.BOFTConfig", "peft.AutoPeftModel", "torch.optim.SGD"]
)
@pytest.mark.parametrize("key", ["config", "text_encoder_config"])
def test_only_known_kinds_of_adapters_are_built(target, key):
    config = {"target": "peft.LoraConfig", "params": {"target_modules": ["to_q"]}}
    params = {"config": config, "seed": 1} | {key: {"target": target, "params": {}}}
    with pytest.raises(UserError, match=f"{target}' is not"):
        tuning_of(
            {"tuning": {"target": "ldm.methods.adapter.Adapter", "params": params}, "learning_rate": 1e-3}
        )


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    """An uninterrupted run of 10 steps."""
    logs = tmp_path_factory.mktemp("whole")
    assert main(["-b", RECIPE, str(tiny_config), LORA, "-l", str(logs), *QUICK]) == 0
    return next(logs.iterdir())


def test_five_steps_are_those_of_a_plain_loop_over_pefts_own_function(tiny, tiny_config, tmp_path):
    """In the loop, peft injects the adapter, and torch optimizes equation 2 on the data module's draws."""
    words = [
        "-b",
        RECIPE,
        str(tiny_config),
        LORA,
        "-l",
        str(tmp_path),
        *QUICK,
        "lightning.trainer.max_steps=5",
    ]
    assert main(words) == 0
    trained = state(next(tmp_path.iterdir()))["state_dict"]

    config = load_config([RECIPE, tiny_config, LORA])
    data, module, trainer = build(config, tmp_path)  # for the draws alone
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    module.setup("fit")
    data.prepare_latents()
    samples = TrainingSamples(data)

    model = LatentDiffusion.from_base(tiny)
    transformer = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
    layers = {
        "unet": [*transformer, "conv1", "conv2"],
        "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
    }
    for name, network in model.trainable.items():
        torch.manual_seed(generator(23, f"adapter {name}").initial_seed())
        inject_adapter_in_model(LoraConfig(r=8, lora_alpha=8, target_modules=layers[name]), network)
    parameters = [p for network in model.trainable.values() for p in network.parameters() if p.requires_grad]
    optimizer = AdamW(
        parameters, lr=config["model"]["params"]["learning_rate"], weight_decay=0.01, fused=True
    )
    for step in range(5):
        batch = data.on_after_batch_transfer(collate([samples[2 * step], samples[2 * step + 1]]), 0)
        noisy = model.schedule.add_noise(batch.latents, batch.noise, batch.timesteps)
        states = model.embed([prompt.replace("[V]", "sks") for prompt in batch.prompts])
        error = (model.predict(noisy, batch.timesteps, states) - batch.noise).square().mean(dim=(1, 2, 3))
        optimizer.zero_grad()
        (error[:2].mean() + error[2:].mean()).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    reference = {f"model.{name}": p for name, p in model.named_parameters() if p.requires_grad}
    assert trained.keys() == reference.keys()
    for name, value in reference.items():
        torch.testing.assert_close(trained[name], value.detach(), rtol=1e-5, atol=1e-7)
        assert value.abs().sum() > 0  # B has left zero


def test_the_checkpoint_holds_the_adapter_alone_and_samples_as_the_run(whole, tiny):
    held = state(whole)["state_dict"]
    assert all(
        re.fullmatch(r"model\.(unet|text_encoder)\..*\.lora_[AB]\.default\.weight", key) for key in held
    )
    assert (whole / "checkpoints" / "best.ckpt").stat().st_size < 300_000
    model = load_for_sampling(whole).model
    for name, value in model.named_parameters():
        assert f"model.{name}" not in held or torch.equal(value, held[f"model.{name}"])
    base = LatentDiffusion.from_base(tiny)
    assert not torch.equal(prediction(model), prediction(base))
    with adapter().untrained(model, torch.float32)() as untrained:
        assert torch.equal(prediction(untrained), prediction(base))


def test_a_frozen_base_in_bf16_with_checkpointing_trains_an_adapter_in_fp32(
    tiny_config, tmp_path, monkeypatch
):
    """No copy of the base is made, and the prior loss on the untrained model's predictions starts at exactly 0."""
    monkeypatch.setattr(LatentDiffusion, "frozen_copy", None)
    words = [
        "model.params.weights_precision=bf16",
        "data.params.prior.precision=bf16",
        "model.params.gradient_checkpointing=true",
        "model.params.prior_target=untrained",
    ]
    assert main(["-b", RECIPE, str(tiny_config), LORA, "-l", str(tmp_path), *QUICK, *words]) == 0
    run = next(tmp_path.iterdir())
    content = state(run)
    moments = [
        m[key] for m in content["optimizer_states"][0]["state"].values() for key in ("exp_avg", "exp_avg_sq")
    ]
    assert {value.dtype for value in [*content["state_dict"].values(), *moments]} == {torch.float32}
    losses = [row["prior_loss"] for row in read_rows(run / "metrics.jsonl")]
    assert losses[0] == 0 < losses[-1]
    assert load_for_sampling(run).step == 10


def test_an_adapters_run_is_evaluated(whole, tmp_path):
    clip, dino = tiny_features(tmp_path / "features")
    few = ["sampling.steps=1", "sampling.images_per_prompt=1", "sampling.class_images=2"]
    words = ["--ckpt", str(whole), "--device", "cpu", "--outdir", str(tmp_path / "out")]
    assert evaluate.main([*words, f"networks.clip={clip}", f"networks.dino={dino}", *few]) == 0
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["dino"]["value"]


def test_the_prior_and_the_drift_are_those_of_a_frozen_copy(whole, tiny, tiny_config, tmp_path, monkeypatch):
    """The same run, once with the adapter switched off and once with a copy of the base."""
    monkeypatch.setattr(
        Adapter,
        "untrained",
        lambda self, model, dtype: AllWeights.untrained(self, LatentDiffusion.from_base(tiny), dtype),
    )
    assert main(["-b", RECIPE, str(tiny_config), LORA, "-l", str(tmp_path), *QUICK]) == 0
    other = next(tmp_path.iterdir())
    for file in ("metrics.jsonl", "validation.jsonl"):
        assert (whole / file).read_bytes() == (other / file).read_bytes()
    chunks = sorted(path.name for path in (whole / "prior").glob("*.safetensors"))
    assert chunks
    for name in chunks:
        assert (whole / "prior" / name).read_bytes() == (other / "prior" / name).read_bytes()


def test_a_stopped_run_goes_on_to_the_same_end(whole, tiny_config, tmp_path, monkeypatch):
    at_call(monkeypatch, DreamBooth, "training_step", {5}, send(signal.SIGTERM))
    assert main(["-b", RECIPE, str(tiny_config), LORA, "-l", str(tmp_path), *QUICK]) == 75
    run = next(tmp_path.iterdir())
    assert resume(run) == 0
    assert_same_run(run, whole)


def assert_same_curve(run, other) -> None:
    for row, another in zip(
        read_rows(run / "metrics.jsonl"), read_rows(other / "metrics.jsonl"), strict=True
    ):
        assert row == pytest.approx(another, abs=1e-5)


def test_accumulation_walks_the_same_curve(whole, tiny_config, tmp_path):
    words = ["data.params.batch_size=1", "lightning.trainer.accumulate_grad_batches=2"]
    assert main(["-b", RECIPE, str(tiny_config), LORA, "-l", str(tmp_path), *QUICK, *words]) == 0
    assert_same_curve(whole, next(tmp_path.iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [[], ["model.params.text_encoder_learning_rate=0", "model.params.clip_skip=2"]]
)
def test_two_processes_walk_the_same_curve(tiny_config, tmp_path, words):
    """With and without an adapter for the text encoder; without, DDP must not wait for its gradients."""
    words = ["-b", RECIPE, str(tiny_config), LORA, *QUICK, *words]
    assert main([*words, "-l", str(tmp_path / "one")]) == 0
    command = [sys.executable, "main.py", *words, "-l", str(tmp_path / "two"), "data.params.batch_size=1"]
    command.append("lightning.trainer.devices=2")
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    (one,), (two,) = (tmp_path / "one").iterdir(), (tmp_path / "two").iterdir()
    assert_same_curve(one, two)
