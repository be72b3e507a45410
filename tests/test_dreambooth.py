"""The main job through the real entry point: trained weights, loss, and written files."""

import json
import subprocess
import sys
import weakref

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.config import load_config
from ldm.data.batch import collate
from ldm.data.datamodule import TrainingSamples
from ldm.diffusion.loss import denoising_error
from ldm.diffusion.schedule import VariancePreserving
from ldm.diffusion.weighting import MinSnr
from ldm.models import graphed
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.training.rows import read_rows
from ldm.training.run_config import scale_learning_rates
from tests.conftest import PROJECT, RECIPE


@pytest.fixture(scope="module")
def finished(tiny, tiny_config, tmp_path_factory):
    """A run of 30 steps at a high learning rate, for tests that do not change it."""
    from main import main

    logs = tmp_path_factory.mktemp("finished")
    words = ["lightning.trainer.max_steps=30", "model.params.learning_rate=2e-3"]
    assert main(["--base", RECIPE, str(tiny_config), "-l", str(logs), *words]) == 0
    return next(logs.iterdir())


def checkpoint(run, name="last.ckpt"):
    return torch.load(run / "checkpoints" / name, weights_only=True)


def test_the_loss_falls(finished):
    rows = read_rows(finished / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 31))
    losses = [row["loss"] for row in rows]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    for row in rows:
        assert row["loss"] == pytest.approx(row["subject_loss"] + row["prior_loss"], rel=1e-6)


def test_validation_sees_the_subject_learned_and_the_class_drift(finished):
    rows = read_rows(finished / "validation.jsonl")
    assert rows[0]["step"] == 0
    assert rows[0]["drift"] == 0  # nothing has moved yet: exactly the base
    assert rows[-1]["drift"] > 0
    assert rows[-1]["subject_loss"] < rows[0]["subject_loss"]
    assert rows[-1]["score"] == pytest.approx(rows[-1]["subject_loss"] + rows[-1]["drift"])


def test_text_encoder_and_unet_move_and_the_first_stage_does_not(finished, tiny):
    base, trained = LatentDiffusion.from_base(tiny), LatentDiffusion.from_base(finished / "model")
    before, after = base.state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    for key in before:
        if key.startswith("vae."):
            assert torch.equal(before[key], after[key]), key
    for part in ("unet", "text_encoder"):
        assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith(part)), part


def test_the_checkpoint_holds_what_trains_and_what_a_resume_needs(finished, tiny):
    state = checkpoint(finished)
    assert {key.split(".")[1] for key in state["state_dict"]} == {"unet", "text_encoder"}
    assert state["identifier"] == "sks"
    assert state["config"]["model"]["params"]["base"] == str(tiny)
    assert state["global_step"] == 30
    assert "optimizer_states" not in checkpoint(finished, "best.ckpt")


def test_the_run_folder_says_what_was_run(finished):
    record = json.loads((finished / "configs" / "start-000.json").read_text())
    assert "--base" in record["command"]
    assert record["packages"]["torch"] == torch.__version__
    assert record["git"]
    assert {"step-000000.png", "step-000030.png", "prior.png"} <= {
        p.name for p in (finished / "images").iterdir()
    }
    assert list((finished / "tensorboard").glob("events*"))


@pytest.mark.parametrize("min_snr_gamma", [None, 0.5])
def test_loss_is_equation_2_by_hand(tiny, tiny_config, tmp_path, min_snr_gamma):
    """One batch of the data module through `training_step`, against the paper's formula written out.

    Min-SNR weighs every sample of the subject and of the prior by its own timestep.
    """
    from ldm.training.build import build

    data, module, trainer = build(load_config([RECIPE, tiny_config]), tmp_path)
    trainer.strategy.connect(module)
    trainer._data_connector.attach_data(module, datamodule=data)
    module.prior_loss_weight = 0.7
    module.weighting = min_snr_gamma and MinSnr(min_snr_gamma)
    module.setup("fit")
    data.prepare_latents()
    loaded = collate([TrainingSamples(data)[n] for n in (0, 1)])
    batch = data.on_after_batch_transfer(loaded, 0)
    loss = module.training_step(batch, 0)["loss"]

    model = module.model
    pixels = torch.stack([data.subjects[0].pixels(view) for view in loaded.views])
    posterior = model.vae.encode(pixels).latent_dist
    x = (posterior.mean + posterior.std * loaded.posterior_noise) * model.vae.config.scaling_factor
    kept = model.alphas_cumprod[batch.timesteps].view(-1, 1, 1, 1)
    snr = kept.flatten() / (1 - kept.flatten())
    weight = torch.ones_like(snr) if min_snr_gamma is None else snr.clamp(max=min_snr_gamma) / snr
    eps = batch.noise
    clean = torch.cat([x, data.classes[0].bank.latents(loaded.prior_numbers, "cpu")])
    noisy = kept.sqrt() * clean + (1 - kept).sqrt() * eps
    errors = []
    for half, prompt in ((slice(0, 2), "a photo of sks dog"), (slice(2, 4), "a photo of a dog")):
        ids = model.tokenizer(
            [prompt] * 2, padding="max_length", max_length=model.text_window, return_tensors="pt"
        )
        states = model.text_encoder(ids.input_ids).last_hidden_state
        prediction = model.unet(noisy[half], batch.timesteps[half], encoder_hidden_states=states).sample
        errors.append((weight[half] * ((prediction - eps[half]) ** 2).mean(dim=(1, 2, 3))).mean())
    assert loss.item() == pytest.approx((errors[0] + 0.7 * errors[1]).item(), rel=1e-5)
    assert len(set(batch.timesteps.tolist())) > 1  # t and t' are drawn apart
    assert min_snr_gamma is None or len(set(weight[2:].tolist())) > 1  # the prior's samples are weighed too


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_has_no_error(prediction_type):
    x, eps = torch.randn(2, 3, 4, 5, 5).unbind()
    alphas_cumprod = torch.linspace(0.99, 0.01, 10)
    timesteps = torch.tensor([1, 5, 9])
    alpha, sigma = (
        f(alphas_cumprod[timesteps]).sqrt().view(-1, 1, 1, 1) for f in (lambda a: a, lambda a: 1 - a)
    )
    perfect = eps if prediction_type == "epsilon" else alpha * eps - sigma * x
    schedule = VariancePreserving(alphas_cumprod, prediction_type)
    error = denoising_error(lambda noisy, t: perfect, x, eps, timesteps, schedule)
    assert torch.allclose(error, torch.zeros(3), atol=1e-12)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weights_the_error_of_the_clean_image_by_clipped_snr(prediction_type):
    """min(snr, gamma) times the squared error of x, whatever the network predicts."""
    generator = torch.Generator().manual_seed(0)
    x, eps, prediction = torch.randn(3, 6, 4, 5, 5, generator=generator).unbind()
    alphas_cumprod = torch.linspace(0.999, 0.01, 6)
    timesteps = torch.arange(6)
    alpha, sigma = alphas_cumprod.sqrt().view(-1, 1, 1, 1), (1 - alphas_cumprod).sqrt().view(-1, 1, 1, 1)
    noisy = alpha * x + sigma * eps
    clean = (
        (noisy - sigma * prediction) / alpha
        if prediction_type == "epsilon"
        else alpha * noisy - sigma * prediction
    )
    snr = (alphas_cumprod / (1 - alphas_cumprod)).clamp(max=5)
    expected = snr * (clean - x).square().mean(dim=(1, 2, 3))
    schedule = VariancePreserving(alphas_cumprod, prediction_type)
    weighting = MinSnr(5.0)
    error = denoising_error(lambda n, t: prediction, x, eps, timesteps, schedule, weighting)
    assert torch.allclose(error, expected, rtol=1e-3)


def test_accumulation_walks_the_same_curve(train):
    words = ["model.params.learning_rate=1e-3", "lightning.trainer.max_steps=20"]
    whole = train(*words, name="whole")
    accumulated = train(
        *words, "data.params.batch_size=1", "lightning.trainer.accumulate_grad_batches=2", name="acc"
    )
    assert_same_curve(whole, accumulated)


def test_two_processes_walk_the_same_curve(train, tiny_config, tmp_path):
    words = ["model.params.learning_rate=1e-3", "lightning.trainer.max_steps=20"]
    whole = train(*words, name="whole")
    command = [
        sys.executable,
        "main.py",
        "--base",
        RECIPE,
        str(tiny_config),
        "-l",
        str(tmp_path / "two"),
        *words,
    ]
    command += ["data.params.batch_size=1", "lightning.trainer.devices=2"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    runs = list((tmp_path / "two").iterdir())
    assert len(runs) == 1  # one run folder for both
    assert_same_curve(whole, runs[0])


def assert_same_curve(run, other):
    rows, others = read_rows(run / "metrics.jsonl"), read_rows(other / "metrics.jsonl")
    assert len(rows) == len(others) == 20
    for row, another in zip(rows, others, strict=True):
        assert row == pytest.approx(another, abs=1e-5)


def test_prior_samples_are_the_same_early_late_and_with_other_batches(train):
    def chunks(run):
        return {path.name: path.read_bytes() for path in sorted((run / "prior").iterdir())}

    early = train(name="early")
    late = train("data.params.batch_size=1", "lightning.callbacks.validation=null", name="late")
    assert chunks(early) == chunks(late)
    assert len(chunks(early)) == 2


def test_without_prior_loss_nothing_is_drawn_for_training(train):
    run = train("model.params.prior_loss_weight=0", "lightning.callbacks.validation=null")
    assert not (run / "prior").exists()
    assert all(row["prior_loss"] == 0 for row in read_rows(run / "metrics.jsonl"))


def test_encoding_once_gives_the_losses_of_encoding_every_step(train):
    """Random crops of square images are the whole images, but are encoded anew in every step."""
    words = ["data.params.flip_probability=0.5", "lightning.trainer.max_steps=20"]
    once = train(*words, name="once")
    each = train(*words, "data.params.random_crop=true", name="each")
    assert_same_curve(once, each)


def test_a_folder_of_class_images_replaces_sampling(train, tmp_path):
    folder = tmp_path / "class"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (40, 50), (index * 80, 100, 50)).save(folder / f"{index}.png")
    run = train(f"data.params.reg_data_root={folder}")
    assert len(list((run / "prior").iterdir())) == 1  # three encoded images, not eight samples
    page = (run / "report.html").read_text()
    assert "The user&#39;s own pictures of the class." in page
    assert "untrained model&#39;s samples" not in page


def test_frozen_text_encoder(train, tiny):
    run = train("model.params.text_encoder_learning_rate=0")
    assert {key.split(".")[1] for key in checkpoint(run)["state_dict"]} == {"unet"}


def test_weights_in_bf16_take_half_and_learn_all_the_same(train):
    run = train(
        "model.params.weights_precision=bf16",
        "model.params.learning_rate=2e-3",
        "lightning.trainer.max_steps=30",
    )
    state = checkpoint(run)
    assert {value.dtype for value in state["state_dict"].values()} == {torch.bfloat16}
    moments = state["optimizer_states"][0]["state"].values()
    assert {moment[key].dtype for moment in moments for key in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
    losses = [row["loss"] for row in read_rows(run / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


def test_compiled_blocks_have_the_gradients_of_plain_ones(tiny):
    """The graphs that a GPU's compiler would get, run operation by operation; weights keep their names."""
    gradients = {}
    for compiled in (False, True):
        model = LatentDiffusion.from_base(tiny)
        model.unet.requires_grad_(True)
        names = set(model.unet.state_dict())
        if compiled:
            model.unet.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        assert set(model.unet.state_dict()) == names
        draws = torch.Generator().manual_seed(0)
        latents = torch.randn(2, *model.latent_shape(16, 16), generator=draws)
        states = model.embed(["a photo of a dog", "a photo of a sks dog"])
        model.predict(latents, torch.tensor([10, 700]), states).square().mean().backward()
        gradients[compiled] = {name: p.grad for name, p in model.unet.named_parameters()}
    assert any("attn2" in name for name in gradients[True])
    for name, gradient in gradients[False].items():
        torch.testing.assert_close(gradients[True][name], gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["v1", "xl"])
@pytest.mark.parametrize("text_trains", [True, False])
def test_passes_that_would_be_recorded_compute_what_plain_ones_do(request, monkeypatch, family, text_trains):
    """Bit for bit; tests/test_gpu.py records them. Passes without gradients are not recorded."""
    recorded = []

    def noted(network, inputs):
        recorded.append(network)
        return network

    monkeypatch.setattr(graphed, "record", noted)
    base = request.getfixturevalue({"v1": "tiny", "xl": "xl"}[family])
    prompts = ["a photo of a dog", "a photo of a sks dog"]
    states = {}
    for graphs in (False, True):
        model = LatentDiffusion.from_base(base)
        model.unet.requires_grad_(True)
        for encoder in model.text_encoders.values():
            encoder.requires_grad_(text_trains)
        if graphs:
            model.record_graphs()
        draws = torch.Generator().manual_seed(0)
        latents = torch.randn(2, *model.latent_shape(16, 16), generator=draws)
        timesteps = torch.tensor([10, 700])
        with torch.no_grad():
            model.predict(latents, timesteps, model.embed(prompts))
        one_prompt = prompts[:1] * 2  # is encoded once: another shape for the text encoders
        for batch in (prompts, prompts, one_prompt):
            model.predict(latents, timesteps, model.embed(batch)).square().mean().backward()
        states[graphs] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert len(recorded) == (3 if text_trains else 1)
    assert states[True].keys() == states[False].keys()
    for name, gradient in states[False].items():
        assert torch.equal(states[True][name], gradient)


@pytest.mark.parametrize("key", ["compile", "cuda_graphs"])
def test_what_needs_a_gpu_is_refused_before_anything_is_written(tiny, tmp_path, capsys, key):
    from main import main

    words = ["--base", RECIPE, "--actual_resume", str(tiny), f"model.params.{key}=true"]
    assert main([*words, "--logdir", str(tmp_path / "logs")]) == 2
    assert f"model.params.{key} needs a GPU" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    "change",
    [
        "model.params.compile=true",
        "model.params.gradient_checkpointing=true",
        "lightning.trainer.accumulate_grad_batches=2",
    ],
)
def test_what_graphs_cannot_record_is_refused(tiny_config, tmp_path, monkeypatch, capsys, change):
    from main import main

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    words = ["--base", RECIPE, str(tiny_config), "model.params.cuda_graphs=true", change]
    assert main([*words, "--logdir", str(tmp_path / "logs")]) == 2
    told = capsys.readouterr().err
    assert "model.params.cuda_graphs: " in told
    assert change.partition("=")[0] in told
    assert not (tmp_path / "logs").exists()


def test_weights_are_read_straight_onto_the_trainers_device(tiny_config, tmp_path, monkeypatch):
    """The meta device replaces a GPU here: nothing is computed with weights before the run starts."""
    from pytorch_lightning.strategies import SingleDeviceStrategy

    from ldm.training.build import build

    monkeypatch.setattr(SingleDeviceStrategy, "root_device", torch.device("meta"))
    config = load_config([str(RECIPE), str(tiny_config)], [])
    _, module, _ = build(config, tmp_path)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float32)}
    copy = module.model.frozen_copy(torch.float16)
    assert {(p.device.type, p.dtype) for p in copy.unet.parameters()} == {("meta", torch.float16)}
    assert {
        p.device.type for p in LatentDiffusion.from_base(config["model"]["params"]["base"]).parameters()
    } == {"cpu"}


def test_tf32_is_a_setting(train):
    train("model.params.tf32=true", "lightning.trainer.max_steps=1", name="tf32")
    assert torch.get_float32_matmul_precision() == "high"
    train("lightning.trainer.max_steps=1", name="exact")
    assert torch.get_float32_matmul_precision() == "highest"


def test_gradients_are_clipped_in_every_precision(train, monkeypatch):
    """Lightning's own clipping refuses the fused optimizer under mixed precision."""
    from ldm.methods.dreambooth import DreamBooth

    norms = []

    def clip_and_look(self, optimizer, *settings, **named):
        clip(self, optimizer, *settings, **named)
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    clip = DreamBooth.configure_gradient_clipping
    monkeypatch.setattr(DreamBooth, "configure_gradient_clipping", clip_and_look)
    for precision in ("32-true", "bf16-mixed", "16-mixed"):
        norms.clear()
        words = (f"lightning.trainer.precision={precision}", "lightning.trainer.gradient_clip_val=0.01")
        run = train(*words, "lightning.trainer.max_steps=4", name=precision)
        fused = {group["fused"] for group in checkpoint(run)["optimizer_states"][0]["param_groups"]}
        assert fused == {precision != "16-mixed"}
        assert norms
        assert max(norms) == pytest.approx(0.01, rel=1e-3)


def test_clip_skip_trains_what_conditions(train):
    keys = checkpoint(train("model.params.clip_skip=2"))["state_dict"]
    layers = {key.split("layers.")[1][0] for key in keys if "text_encoder" in key and "layers." in key}
    assert "1" not in layers or "2" not in layers  # the last layer neither conditions nor trains


def test_train_false_checks_and_stops(train, tiny_config, tmp_path, capsys):
    from main import main

    logs = tmp_path / "none"
    assert main(["-b", RECIPE, str(tiny_config), "-l", str(logs), "-t", "false"]) == 0
    told = capsys.readouterr().out
    assert "steps: 10" in told
    assert "disk:" in told
    assert not logs.exists()


def test_a_polynomial_schedule_ends_at_diffusers_rate(train):
    run = train("model.params.lr_schedule=polynomial", "lightning.trainer.max_steps=3")
    (schedule,) = checkpoint(run)["lr_schedulers"]
    assert schedule["_last_lr"] == pytest.approx([1e-7, 1e-7])


def test_scale_lr(train):
    run = train("data.params.batch_size=2", "--scale_lr")
    assert checkpoint(run)["config"]["model"]["params"]["learning_rate"] == pytest.approx(4e-4)  # 2 of 2e-4


@pytest.mark.parametrize(("devices", "factor"), [(-1, 4), ("auto", 4), (3, 3), ([0, 3], 2)])
def test_scale_lr_counts_the_devices_that_lightning_will_use(monkeypatch, devices, factor):
    for name in ("lightning_fabric.accelerators.cuda", "pytorch_lightning.accelerators.cuda"):
        monkeypatch.setattr(f"{name}.num_cuda_devices", lambda: 4)
    for name, there in (("is_available", True), ("device_count", 4), ("set_device", None)):
        monkeypatch.setattr(f"torch.cuda.{name}", lambda *_, there=there: there)
    overlay = PROJECT / "configs" / "multi-gpu-fp16.yaml"
    config = load_config([RECIPE, overlay], [f"lightning.trainer.devices={devices}"])
    scale_learning_rates(config)
    assert config["model"]["params"]["learning_rate"] == pytest.approx(factor * 4 * 2e-4)


def test_scale_lr_scales_a_new_tokens_rate_too():
    words = ["model.params.tuning.params.token_learning_rate=1e-3", "lightning.trainer.accelerator=cpu"]
    config = load_config([RECIPE, PROJECT / "configs" / "textual-inversion.yaml"], words)
    scale_learning_rates(config)
    assert config["model"]["params"]["tuning"]["params"]["token_learning_rate"] == pytest.approx(4e-3)


def test_no_test_skips_what_follows_the_last_step(train):
    run = train("--no-test")
    assert not (run / "images" / "step-000010.png").exists()
    assert read_rows(run / "validation.jsonl")[-1]["step"] == 5


def test_captions_beside_images(train, tmp_path):
    from ldm.data.subject import SubjectImages

    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("[V] dog asleep\n")
    images = SubjectImages.from_folder(tmp_path, prompt="a photo of [V] dog", size=32, seed=0, captions=True)
    assert images.prompts == ["a photo of [V] dog", "[V] dog asleep"]


def test_wandb_offline_gets_scalars_images_and_config(train, tmp_path):
    run = train("lightning.logger.target=pytorch_lightning.loggers.WandbLogger")
    files = list((run / "wandb").glob("offline-run-*/files/media/images/*.png"))
    assert any("samples" in file.name for file in files)


def copies_of_the_base(monkeypatch):
    """A list that gets a weak reference to the UNet of every frozen copy."""
    copies, copy = [], LatentDiffusion.frozen_copy

    def watched(self, dtype):
        made = copy(self, dtype)
        copies.append(weakref.ref(made.unet))
        return made

    monkeypatch.setattr(LatentDiffusion, "frozen_copy", watched)
    return copies


def test_the_frozen_copy_goes_when_the_bank_is_full_and_the_drift_is_prepared(
    tiny_config, tmp_path, monkeypatch
):
    from ldm.training.build import build

    data, module, trainer = build(load_config([RECIPE, tiny_config]), tmp_path)
    copies, held = copies_of_the_base(monkeypatch), []
    module.on_train_batch_end = lambda *_: held.append(copies[0]() is not None)
    trainer.fit(module, data)
    assert held[0]  # the gauge has its predictions, the bank only its first chunk
    assert not held[-1]


def test_a_bank_filled_at_the_start_frees_the_copy_at_once_and_changes_nothing(
    train, tiny_config, tmp_path, monkeypatch
):
    from ldm.training.build import build

    many = "data.params.prior.count=1000"  # more than the steps ask for: the rest is never drawn
    words = ["data.params.prior.fill_at_start=true", many]
    data, module, trainer = build(load_config([RECIPE, tiny_config], words), tmp_path)
    copies, held, gradients = copies_of_the_base(monkeypatch), [], []

    def look(*_):
        held.append(copies[0]() is not None)
        gradients.extend(p.grad for p in module.parameters())

    module.on_train_batch_end = look
    trainer.fit(module, data)
    assert not held[0]
    assert not any(gradient is not None for gradient in gradients)  # freed as soon as they are used
    early, late = train(*words, name="early"), train(many, name="late")
    assert (early / "metrics.jsonl").read_bytes() == (late / "metrics.jsonl").read_bytes()
    chunks = sorted(path.name for path in (late / "prior").glob("*.safetensors"))
    assert chunks == sorted(path.name for path in (early / "prior").glob("*.safetensors"))
    for name in chunks:
        assert (late / "prior" / name).read_bytes() == (early / "prior" / name).read_bytes()
