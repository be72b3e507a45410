"""The recipes for Stable Diffusion: full-size models on the meta device, one real step on scaled-down ones."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
from diffusers.optimization import get_scheduler  # noqa: F401 - imported before the network is cut

from ldm.config import load_config
from ldm.formats.components import Components
from ldm.formats.diffusers_folder import by_field, read_tokenizers, save_diffusers_folder
from ldm.formats.modules import empty_module
from ldm.formats.network_configs import networks_of, read_network_configs, read_scheduler_config
from ldm.targets import instantiate_from_config
from ldm.training.estimate import estimate
from tests.conftest import PROJECT, RECIPE
from tests.small_sd import CONFIGS, small_configs, small_sd, tokenizers_are_read_once  # noqa: F401 - a fixture

RECIPES = {
    "v1": ("v1", []),
    "v2": ("v2", []),
    "multi-gpu-fp16": ("v1", ["multi-gpu-fp16"]),
    "bf16": ("v1", ["bf16"]),
    "paper": ("v1", ["paper"]),
    "gpu-speed": ("v1", ["gpu-speed"]),
    "low-memory": ("v1", ["low-memory"]),
    "v2, low-memory, bf16": ("v2", ["low-memory", "bf16"]),
    "low-memory, bf16-weights": ("v1", ["low-memory", "bf16-weights"]),
    "frozen-text-encoder": ("v1", ["frozen-text-encoder"]),
    "ancestor": ("v1", ["ancestor"]),
    "keep-class": ("v1", ["keep-class"]),
    "xl": ("xl", []),
}
"""Each recipe's Stable Diffusion version and its overlays."""

ADAPTERS = {name: ("v1", [name, "stable-diffusion/lora"]) for name in ("lora", "dora", "oft")}
ADAPTERS["xl-lora"] = ("xl", ["stable-diffusion/xl-lora"])
ADAPTERS["lora-low-memory"] = ("v1", ["lora", "stable-diffusion/lora", "stable-diffusion/lora-low-memory"])
"""Recipes that train an adapter of the same models."""

PAPER = PROJECT / "configs" / "paper.yaml"

UNET = {"v1": 859_520_964, "v2": 865_910_724, "xl": 2_567_463_684}
TEXT_ENCODER = {"v1": 123_060_480, "v2": 340_387_840, "xl": 123_060_480 + 694_659_840}


def files(name):
    """The config files of recipe `name`, as a user types them."""
    version, overlays = {**RECIPES, **ADAPTERS}[name]
    paths = [CONFIGS / f"{version}.yaml", *(PROJECT / "configs" / f"{overlay}.yaml" for overlay in overlays)]
    return [RECIPE, *map(str, paths)]


def test_every_overlay_for_stable_diffusion_is_tested_here():
    tested = {path for name in RECIPES | ADAPTERS for path in files(name)[1:]}
    elsewhere = {"dreambooth", "evaluation", "debug", "wandb", "fidelity", "prodigy", "schedule-free"}
    elsewhere |= {"custom-diffusion", "textual-inversion", "templates"}
    there = [*(PROJECT / "configs").glob("*.yaml"), *CONFIGS.glob("*.yaml")]
    assert {str(path) for path in there if path.stem not in elsewhere} == tested


@pytest.fixture
def full_size(monkeypatch):
    """`load_base` returns a full-size model of the version asked for, on the meta device."""

    def arrange(version):
        configs = read_network_configs(CONFIGS / version, networks_of(CONFIGS / version))
        networks = {name: empty_module(name, config) for name, config in configs.items()}
        tokenizers, schedule = (
            read_tokenizers(CONFIGS / version, configs),
            read_scheduler_config(CONFIGS / version),
        )

        def load_base(base, **options):
            return Components(
                **by_field(networks),
                tokenizers=tokenizers,
                scheduler_config=schedule,
                source=str(base),
                fingerprint="0" * 32,
            )

        monkeypatch.setattr("ldm.models.latent_diffusion.load_base", load_base)

    return arrange


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_builds_a_full_size_model(name, full_size):
    version, overlays = RECIPES[name]
    full_size(version)
    config = load_config(files(name))
    module = instantiate_from_config(config["model"])
    frozen = version == "xl" or "frozen-text-encoder" in overlays
    sparing = version == "xl" or "low-memory" in overlays
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trained == UNET[version] + (0 if frozen else TEXT_ENCODER[version])
    assert module.model.prediction_type == {"v1": "epsilon", "v2": "v_prediction", "xl": "epsilon"}[version]
    size = config["data"]["params"]["size"]
    assert size == {"v1": 512, "v2": 768, "xl": 1024}[version] == module.model.native_size
    assert module.model.unet.is_gradient_checkpointing == sparing
    learning_rate = 1e-6 if name in ("ancestor", "xl") else 5e-6
    assert module.tuning.learning_rate == learning_rate
    assert module.tuning.text_encoder_learning_rate == (0 if frozen else learning_rate)
    assert module.prior_loss_weight == 1
    assert config["lightning"]["trainer"]["max_steps"] == (800 if name == "ancestor" else 1000)
    as_the_ancestor = {"flip_probability": 0.5, "gradient_clip_val": None, "use_ema": False}
    found = {**config["model"]["params"], **config["data"]["params"], **config["lightning"]["trainer"]}
    for key, value in as_the_ancestor.items():
        assert (found[key] == value) == (name == "ancestor"), key
    optimizer = module.optimizer([torch.zeros(1, requires_grad=True)])
    assert type(optimizer).__name__ == ("AdamW8bit" if sparing else "AdamW")


@pytest.mark.parametrize(
    ("name", "file"),
    [*((name, CONFIGS / f"{name}.yaml") for name in ("v1", "v2", "xl")), ("paper", PAPER)],
)
def test_a_recipe_says_what_arithmetic_it_asks_for(name, file, full_size):
    """The PFLOP in the comment match those counted on the networks without data."""
    full_size(RECIPES[name][0])
    config = load_config(files(name), ["lightning.callbacks={}"])
    data = instantiate_from_config(config["data"])
    trainer = SimpleNamespace(max_steps=1000, accumulate_grad_batches=1, world_size=1)
    line = estimate(data, instantiate_from_config(config["model"]), trainer, PROJECT).splitlines()[-1]
    drawn, trained = (float(number) for number in re.findall(r"([\d.]+) PFLOP", line))
    told = re.search(r"([\d.]+) PFLOP for prior samples, ([\d.]+) for training", file.read_text())
    assert [float(number) for number in told.groups()] == pytest.approx([drawn, trained], rel=0.02)


@pytest.mark.parametrize(
    ("name", "rank", "trained"),
    [
        ("lora", 4, 1_092_096),  # 797,184 of them the UNet's: diffusers' known 3.2 MB
        ("lora", 8, 2_184_192),
        ("lora", 16, 4_368_384),
        ("dora", 8, 2_184_192 + 136_704),  # a number for each row of a layer
        ("oft", None, 2_112_960),  # 32 * 31 / 2 for each 32 columns
        ("xl-lora", None, 5_806_080),  # diffusers' known 23.2 MB
    ],
)
def test_an_adapter_of_a_full_size_model_is_small(name, rank, trained, full_size):
    """docs/methods.md has the sizes of these in MB."""
    version = ADAPTERS[name][0]
    full_size(version)
    words = [f"model.params.tuning.params.{key}.params.r={rank}" for key in ("config", "text_encoder_config")]
    module = instantiate_from_config(load_config(files(name), words if rank else [])["model"])
    learned = module.tuning.learned(module.model)
    count = sum(value.numel() for value in learned.values())
    assert count == sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert count == trained
    assert count < (UNET[version] + TEXT_ENCODER[version]) / 200
    assert module.tuning.learning_rate == 1e-4


@pytest.fixture(scope="module")
def small_bases(tmp_path_factory):
    """Scaled-down Stable Diffusion 1.x, 2.x and XL in diffusers folders."""
    root = tmp_path_factory.mktemp("small")
    configs = {version: small_configs(root / f"{version}-configs", version) for version in ("v1", "v2", "xl")}
    return {
        version: save_diffusers_folder(small_sd(folder), root / version, torch.float32)
        for version, folder in configs.items()
    }


SHORT = [
    "data.params.size=64",
    "data.params.num_workers=0",
    "data.params.prior.count=1",
    "data.params.prior.chunk_size=1",
    "data.params.prior.steps=2",
    "lightning.trainer.max_steps=1",
    "lightning.trainer.accelerator=cpu",
    "lightning.trainer.devices=1",
    "lightning.trainer.strategy=auto",
    "lightning.callbacks.samples=null",
    "lightning.callbacks.validation=null",
]
"""A step of any recipe in seconds, on the CPU, on 64 px."""


@pytest.mark.parametrize("name", RECIPES | ADAPTERS)
def test_a_recipe_takes_a_real_step_on_a_scaled_down_model(name, small_bases, tmp_path, monkeypatch):
    from main import main

    monkeypatch.chdir(PROJECT)
    base = f"model.params.base={small_bases[{**RECIPES, **ADAPTERS}[name][0]]}"
    words = [base, *SHORT]
    if load_config(files(name))["lightning"]["trainer"]["precision"] == "16-mixed":
        words.append("lightning.trainer.precision=32-true")  # a CPU has no fp16 autocast with a scaler
    if name == "gpu-speed":
        words.append("model.params.cuda_graphs=false")  # refused without a GPU
    assert main(["--base", *files(name), "-l", str(tmp_path), *words]) == 0
    run = next(tmp_path.iterdir())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 1
    assert 0.01 < rows[0]["loss"] < 100
    lora = name in ("lora", "dora", "xl-lora", "lora-low-memory")
    assert (run / "model" / ("pytorch_lora_weights.safetensors" if lora else "model_index.json")).is_file()
