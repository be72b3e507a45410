"""How batches reach a step: loader processes of every start method, pinned memory, exact encoding."""

import multiprocessing

import pytest
import torch

from ldm.data.batch import LoadedBatch, collate
from ldm.data.datamodule import TrainingSamples
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.training.rows import read_rows
from tests.runs import QUICK, resume


@pytest.fixture
def built(tiny_config, tmp_path, monkeypatch):
    """`built("key=value", ...)`: data module and model of the tiny recipe, connected as `fit` connects them."""
    from ldm.config import load_config
    from ldm.training.build import build
    from tests.conftest import PROJECT, RECIPE

    monkeypatch.chdir(PROJECT)

    def make(*words):
        data, module, trainer = build(load_config([RECIPE, tiny_config], words), tmp_path)
        trainer.strategy.connect(module)
        trainer._data_connector.attach_data(module, datamodule=data)
        module.setup("fit")
        data.prepare_latents()
        return data, module

    return make


@pytest.fixture
def start_method():
    before = multiprocessing.get_start_method(allow_none=True)
    yield lambda name: multiprocessing.set_start_method(name, force=True)
    multiprocessing.set_start_method(before, force=True)


def test_loader_processes_start_by_a_server(built, start_method):
    """The default of Linux from Python 3.14, which pickles the dataset as macOS' spawn does."""
    data, _ = built("data.params.num_workers=1")
    start_method("forkserver")
    batch = next(iter(data.train_dataloader()))
    data.num_workers = 0
    expected = next(iter(data.train_dataloader()))
    assert (batch.prompts, batch.views) == (expected.prompts, expected.views)
    assert torch.equal(batch.noise, expected.noise)


def test_a_run_with_spawned_loader_processes_resumes_as_one_without(train, start_method):
    words = (*QUICK, "lightning.callbacks.validation=null")
    whole = train(*words, "lightning.trainer.max_steps=4", name="whole")
    start_method("spawn")
    run = train(*words, "lightning.trainer.max_steps=2", "data.params.num_workers=1", name="loaded")
    assert resume(run, "lightning.trainer.max_steps=4") == 0
    assert read_rows(run / "metrics.jsonl") == read_rows(whole / "metrics.jsonl")


def test_the_loader_is_asked_to_pin_batches_that_can_be_pinned(built, monkeypatch):
    """The loader returns whole batches, and pinning reaches each of their tensors."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    data, _ = built()
    batch = next(iter(data.train_dataloader()))
    assert isinstance(batch, LoadedBatch)
    same = batch.pin_memory()
    assert len(pinned) == 4  # noise, timesteps, sizes and crops, posterior noise
    assert torch.equal(same.noise, batch.noise)
    moved = batch.to("meta", non_blocking=True)
    assert {t.device.type for t in (moved.noise, moved.timesteps, moved.posterior_noise)} == {"meta"}
    assert moved.prompts == batch.prompts


def test_the_vae_never_computes_under_autocast(built):
    """In bf16 the error of the posterior's mean would exceed its standard deviation."""
    data, module = built("data.params.random_crop=true")
    batch = collate([TrainingSamples(data)[n] for n in (0, 1)])
    expected, pictures = data.on_after_batch_transfer(batch, 0).latents, module.model.decode(batch.noise)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(data.on_after_batch_transfer(batch, 0).latents, expected)
        assert torch.equal(module.model.decode(batch.noise), pictures)


def test_a_sample_is_values_alone(built):
    """The dataset that a loader process unpickles must not contain the trainer and the model."""
    import pickle

    data, module = built()
    samples = TrainingSamples(data)
    content = pickle.dumps(samples)
    assert b"ldm.methods" not in content
    assert b"pytorch_lightning" not in content
    again = collate([pickle.loads(content)[5]])
    assert torch.equal(again.noise, collate([samples[5]]).noise)


@pytest.mark.parametrize("allowed", [True, False])
def test_tf32_speaks_for_products_and_convolutions(built, allowed):
    """By default torch rounds the inputs of convolutions to 10 bits."""
    torch.backends.cudnn.allow_tf32 = not allowed
    built(f"model.params.tf32={allowed}")
    assert torch.backends.cudnn.allow_tf32 is allowed
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")


def test_loading_for_sampling_computes_fp32_exactly(tiny):
    from ldm.methods.load import load_for_sampling

    torch.backends.cudnn.allow_tf32 = True
    load_for_sampling(tiny)
    assert torch.backends.cudnn.allow_tf32 is False


@pytest.mark.slow
def test_compiled_blocks_survive_every_width_and_batch_shape_of_a_run(tiny):
    """Blocks of one class share a code object: 3 widths x 2 gradient modes x batch shapes pass torch's limit of 8."""
    import torch._dynamo

    torch._dynamo.reset()
    limit = torch._dynamo.config.recompile_limit
    model = LatentDiffusion.from_base("assets/base")
    model.compile_blocks(backend="eager")
    shape = model.latent_shape(16, 16)
    try:
        for count in (8, 1, 5):
            for gradients in (True, False):
                with torch.set_grad_enabled(gradients):
                    conditioning = model.embed(["a photo of a dog"] * count)
                    model.predict(torch.zeros(count, *shape), torch.full((count,), 500), conditioning)
    finally:
        torch._dynamo.config.recompile_limit = limit
        torch._dynamo.reset()
