"""Stable Diffusion at its full size, with random weights in fp16: a single file out, and in again twice.

SDXL takes 15 GB of memory and 14 GB of disk.
"""

import resource

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open

from ldm.formats.base import load_base
from ldm.formats.components import Components
from ldm.formats.described import read_json
from ldm.formats.diffusers_folder import by_field, load_tokenizer, read_tokenizers, save_diffusers_folder
from ldm.formats.families import SD1, SDXL
from ldm.formats.modules import empty_module, fill
from ldm.formats.network_configs import read_network_configs, read_scheduler_config
from ldm.formats.single_file import published_family, save_single_file
from scripts import export
from tests.offline import no_network  # noqa: F401 - a fixture
from tests.small_sd import CONFIGS, part

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_network")]


def random_network(name, config):
    """A network whose tensors all differ: bytes of a counter, which is cheaper than a billion draws."""
    module = empty_module(name, config)
    tensors = {}
    for number, (key, value) in enumerate(module.state_dict().items()):
        numbers = torch.arange(value.numel(), dtype=torch.int32).add_(number).remainder_(2003)
        tensors[key] = (numbers.half() / 2003 - 0.5).view(value.shape)
    return fill(module, tensors, torch.float16)


def equal(left, right, family=SD1):
    for name in family.networks:
        ours, theirs = part(left, name).state_dict(), part(right, name).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name


@pytest.mark.parametrize("suffix", ["safetensors", "ckpt"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_full_size_file_goes_out_and_comes_back(version, suffix, tmp_path, record_property):
    folder = CONFIGS / version
    networks = {name: random_network(name, read_json(folder / name / "config.json")) for name in SD1.networks}
    model = Components(
        **by_field(networks),
        tokenizers={"tokenizer": load_tokenizer(folder)},
        scheduler_config=read_scheduler_config(folder),
        source="random",
        fingerprint="0" * 32,
    )
    assert published_family(model).configs.name == version
    path = save_single_file(model, tmp_path / f"model.{suffix}", torch.float16)
    loaded = load_base(path, dtype=torch.float16)
    equal(loaded, model)
    assert loaded.scheduler_config == model.scheduler_config
    assert (
        loaded.tokenizers["tokenizer"]("sks dog").input_ids
        == model.tokenizers["tokenizer"]("sks dog").input_ids
    )
    del loaded
    if suffix == "safetensors":  # the component configs of this repository serve diffusers too
        options = {"config": str(folder), "local_files_only": True, "torch_dtype": torch.float16}
        equal(StableDiffusionPipeline.from_single_file(str(path), **options), model)
    record_property("peak_gb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


def random_sdxl():
    configs = read_network_configs(SDXL.configs, SDXL.networks)
    networks = {name: random_network(name, configs[name]) for name in SDXL.networks}
    return Components(
        **by_field(networks),
        tokenizers=read_tokenizers(SDXL.configs, configs),
        scheduler_config=read_scheduler_config(SDXL.configs),
        source="random",
        fingerprint="0" * 32,
        zero_unconditional=True,
    )


def test_sdxl_is_exported_to_a_single_file(tmp_path, record_property):
    base, file = tmp_path / "base", tmp_path / "xl.safetensors"
    save_diffusers_folder(random_sdxl(), base, torch.float16)
    assert export.main(["--ckpt", str(base), "--out", str(file)]) == 0
    record_property("peak_gb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    with safe_open(file, "pt") as tensors:
        assert len(tensors.keys()) == 2513
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F16"}  # noqa: SIM118
    options = {"config": str(SDXL.configs), "local_files_only": True, "torch_dtype": torch.float16}
    pipe = StableDiffusionXLPipeline.from_single_file(str(file), **options)
    equal(pipe, load_base(base, dtype=torch.float16), SDXL)
