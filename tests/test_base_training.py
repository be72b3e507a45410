"""The embedded base's own training, through `main.py` and its shipped configs, on tiny networks."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel

from ldm.diffusion.loss import denoising_error
from ldm.world.autoencoder import Autoencoder, psnr, start_deterministic
from ldm.world.drawing import World
from ldm.world.from_scratch import warm_stable_decay
from ldm.world.judge import exam, features, members_told_apart, spread, trained_judge, verdicts
from ldm.world.text_to_image import TextToImage, liken_to_names
from main import main
from tests.runs import spoil_loss
from tests.tiny import tiny_base, tiny_unet, tiny_vae

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def shrunk(tmp_path, monkeypatch):
    """Writes an overlay that makes a shipped config tiny; returns the command-line arguments for it."""
    monkeypatch.chdir(ROOT)

    def words(model_params: dict) -> list[str]:
        overlay = {
            "model": {"params": {"warmup_steps": 1, "decay_steps": 0, **model_params}},
            "data": {"params": {"count": 16, "batch_size": 4, "cache": str(tmp_path / "world")}},
            "lightning": {"trainer": {"accelerator": "cpu", "precision": "32-true"}},
        }
        path = tmp_path / "tiny.yaml"
        path.write_text(yaml.safe_dump(overlay))
        return [str(path), "--logdir", str(tmp_path / "logs"), "--name", "tiny"]

    return words


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    return UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32).state_dict()


def only_run(tmp_path: Path) -> Path:
    (run,) = (tmp_path / "logs").iterdir()
    return run


def test_a_step_whose_loss_is_no_number_is_left_out_of_the_vae(tmp_path, shrunk, monkeypatch, capsys):
    spoil_loss(monkeypatch, Autoencoder, step=2)
    words = shrunk({"network": {"block_out_channels": [8, 8, 8]}, "total_steps": 3})
    assert main(["--base", "configs/toy/autoencoder.yaml", *words]) == 0
    assert "updates skipped: 1 new, 1 in all" in capsys.readouterr().err
    assert [loss == loss for loss in losses(only_run(tmp_path))] == [True, False, True]


def test_the_vae_learns_and_is_exported(tmp_path, shrunk):
    network = {"block_out_channels": [8, 8, 8]}
    words = shrunk({"network": network, "total_steps": 12, "learning_rate": 0.01})
    assert main(["--base", "configs/toy/autoencoder.yaml", *words]) == 0
    run = only_run(tmp_path)
    curve = losses(run)
    assert len(curve) == 12
    assert curve[-1] < 0.8 * curve[0]
    vae = AutoencoderKL.from_pretrained(run / "vae", torch_dtype=torch.float32)
    assert vae.config.scaling_factor != 0.18215


def test_a_decoder_trained_further_leaves_the_latents_as_they_are(tmp_path, shrunk):
    network = {"block_out_channels": [8, 8, 8]}
    words = shrunk({"network": network, "total_steps": 2})
    assert main(["--base", "configs/toy/autoencoder.yaml", *words]) == 0
    start = only_run(tmp_path) / "vae"
    further = ["configs/toy/decoder.yaml", *words, f"model.params.start={start}"]
    assert (
        main(["--base", "configs/toy/autoencoder.yaml", *further, "--logdir", str(tmp_path / "further")]) == 0
    )
    (run,) = (tmp_path / "further").iterdir()
    before, after = (AutoencoderKL.from_pretrained(folder) for folder in (start, run / "vae"))
    assert after.config.scaling_factor == before.config.scaling_factor
    changed = {
        name.split(".")[0]
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert changed == {"decoder", "post_quant_conv"}


def base_params(tmp_path: Path) -> dict:
    """Settings of configs/toy/base.yaml for a tiny base; its VAE sees the world's 64 px as 16 x 16 latents."""
    base = tiny_base(tmp_path / "base")
    return {
        "first_stage": str(base / "vae"),
        "unet": {"block_out_channels": [8, 16, 16], "norm_num_groups": 4, "attention_head_dim": 2},
        "latent_cache": str(tmp_path / "latents"),
        "total_steps": 4,
    }


def test_a_step_whose_loss_is_no_number_is_left_out_of_the_base(tmp_path, shrunk, monkeypatch, capsys):
    spoil_loss(monkeypatch, TextToImage, step=2)
    assert main(["--base", "configs/toy/base.yaml", *shrunk(base_params(tmp_path))]) == 0
    assert "updates skipped: 1 new, 1 in all" in capsys.readouterr().err
    assert [loss == loss for loss in losses(only_run(tmp_path))] == [True, False, True, True]


def test_the_base_trains_resumes_and_opens_as_a_pipeline(tmp_path, shrunk):
    words = shrunk(base_params(tmp_path))
    assert main(["--base", "configs/toy/base.yaml", *words, "lightning.trainer.max_steps=2"]) == 0
    run = only_run(tmp_path)
    first = losses(run)
    (run / "model").rename(tmp_path / "early")
    assert main(["--resume", str(run), "lightning.trainer.max_steps=4"]) == 0
    resumed = losses(run)
    assert resumed[:2] == first
    assert len(resumed) == 4

    assert main(["--base", "configs/toy/base.yaml", *words, "--logdir", str(tmp_path / "whole")]) == 0
    (whole,) = (tmp_path / "whole").iterdir()
    assert losses(whole) == resumed
    further = [f"model.params.start={run / 'model'}", "--logdir", str(tmp_path / "further")]
    assert main(["--base", "configs/toy/base.yaml", *words, *further, "model.params.learning_rate=1e-9"]) == 0
    (goes_on,) = (tmp_path / "further").iterdir()
    assert losses(goes_on)[0] != first[0]
    before, after = (weights_of(folder / "model" / "unet") for folder in (run, goes_on))
    assert all(torch.allclose(before[key], after[key], atol=1e-3) for key in before)
    pipeline = StableDiffusionPipeline.from_pretrained(run / "model", torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a photo of a dog", num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)


def test_unused_tokens_share_what_names_share_and_are_as_long():
    embeddings = torch.tensor([[3.0, 4.0, 0.0], [3.0, -4.0, 0.0], [9.0, 9.0, 9.0], [0.0, 0.0, 0.5]])
    before = embeddings.clone()
    liken_to_names(embeddings, used=torch.tensor([0, 1, 2]), names=torch.tensor([0, 1]))
    assert torch.equal(embeddings[:3], before[:3])
    assert torch.equal(
        embeddings[3], torch.tensor([6.0, 0.0, 0.0])
    )  # twice what is shared is longer than a name
    embeddings[:2] = torch.tensor([[1.5, 2.0, 0.0], [1.5, -2.0, 0.0]]) / 3
    embeddings[3] = before[3]
    embeddings[:2, 2] = torch.tensor([2.0, -2.0])
    liken_to_names(embeddings, used=torch.tensor([0, 1, 2]), names=torch.tensor([0, 1]))
    assert float(embeddings[3].norm()) == pytest.approx(float(embeddings[0].norm()))
    assert torch.allclose(embeddings[3, :2], torch.tensor([1.0, 0.0]))


def test_the_loss_is_the_denoising_error_of_the_pictures_latents(tmp_path):
    base = tiny_base(tmp_path / "base")
    scheduler = yaml.safe_load((ROOT / "configs/toy/base.yaml").read_text())["model"]["params"]["scheduler"]
    text = json.loads((base / "text_encoder" / "config.json").read_text())
    module = TextToImage(
        str(base / "vae"),
        str(base / "tokenizer"),
        dict(tiny_unet().config),
        text,
        scheduler,
        min_snr_gamma=None,
    )
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    module._latents = latents.numpy()
    batch = {
        "index": torch.tensor([2, 0]),
        "caption": ["a dog", ""],
        "noise": torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        "timestep": torch.tensor([10, 900]),
    }
    loss = module.training_step(batch, 0)
    states = module.model.embed(batch["caption"])
    expected = denoising_error(
        lambda x, t: module.model.predict(x, t, states),
        latents[[2, 0]],
        batch["noise"],
        batch["timestep"],
        module.model.schedule,
    ).mean()
    assert torch.allclose(loss, expected, atol=1e-6)


def test_a_deterministic_start():
    vae = tiny_vae()
    start_deterministic(vae)
    posterior = vae.encode(torch.zeros(1, 3, 32, 32)).latent_dist
    assert torch.allclose(posterior.logvar, torch.tensor(-5.0))


def test_psnr_of_a_known_error():
    target = torch.zeros(2, 3, 4, 4)
    assert torch.allclose(psnr(target + 0.2, target), torch.tensor(20.0))  # peak 2, error 0.2: a tenth


def test_the_learning_rate_warms_holds_and_decays():
    course = [warm_stable_decay(step, 10, 100, 20) for step in range(101)]
    assert course[0] == 0.1
    assert course[9:81] == [1.0] * 72
    assert course[90] == 0.5
    assert course[100] == 0.0


def test_the_judges_measures():
    assert spread(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == 5.0
    look = torch.eye(4)[[0, 0, 1, 1]]
    assert members_told_apart(look, ["dog"] * 4, ["a", "a", "b", "b"]) == 1.0


def test_the_judge_learns_and_is_kept(tmp_path):
    world = World(ROOT / "assets" / "world")
    judge = trained_judge(world, tmp_path, count=128, passes=1)
    pixels, answers = exam(world, "judge", range(4))
    assert answers.shape == verdicts(judge, pixels).shape == (4, 4)
    again = trained_judge(world, tmp_path, count=128, passes=1)
    assert torch.equal(features(judge, pixels), features(again, pixels))
