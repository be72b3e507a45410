"""How training draws timesteps and noise: keyed by the sample number, and distributed as the formulas say."""

import pytest
import torch

from ldm.data.batch import Draws
from ldm.data.timesteps import LogitNormal, Uniform
from ldm.errors import UserError
from ldm.randomness import generator
from ldm.training.rows import read_rows
from main import main
from tests.conftest import RECIPE
from tests.runs import QUICK, resume

SHAPE = (4, 8, 8)


def test_the_papers_draws_are_what_they_always_were():
    for n in range(3):
        source = generator(23, "subject draws", n)
        timestep = int(torch.randint(1000, (), generator=source))
        noise, posterior_noise = torch.randn(SHAPE, generator=source), torch.randn(SHAPE, generator=source)
        for draws in (
            Draws.of(23, "subject", n, SHAPE, 1000),
            Draws.of(23, "subject", n, SHAPE, 1000, Uniform(end=1000)),
        ):
            assert draws.timestep == timestep
            assert torch.equal(draws.noise, noise)
            assert torch.equal(draws.posterior_noise, posterior_noise)


def test_offset_noise_shifts_each_channel_of_the_same_noise():
    """eps' = eps + s * n with one standard normal n for each sample and channel."""
    shifts = []
    for n in range(400):
        plain, shifted = (Draws.of(23, "subject", n, SHAPE, 1000, offset_noise=s) for s in (0.0, 0.1))
        shift = shifted.noise - plain.noise
        assert torch.equal(shifted.posterior_noise, plain.posterior_noise)
        assert shifted.timestep == plain.timestep
        torch.testing.assert_close(shift, shift[:, :1, :1].expand(SHAPE), atol=1e-6, rtol=0)
        shifts.append(shift[:, 0, 0])
    found = torch.stack(shifts)
    assert found.std().item() == pytest.approx(0.1, rel=0.06)
    assert abs(found.mean().item()) < 0.01


def drawn(timesteps, count=4000):
    return torch.tensor([timesteps(generator(0, "test", n), 1000) for n in range(count)])


def test_a_range_is_drawn_from_evenly():
    found = drawn(Uniform(first=200, end=300))
    assert found.min() == 200
    assert found.max() == 299
    assert found.double().mean().item() == pytest.approx(249.5, abs=2)


def test_logit_normal_timesteps_have_a_normal_logit():
    found = (drawn(LogitNormal(mean=0.5, std=0.8)) + 0.5) / 1000
    logit = torch.log(found / (1 - found))
    assert logit.mean().item() == pytest.approx(0.5, abs=0.05)
    assert logit.std().item() == pytest.approx(0.8, abs=0.04)
    part = drawn(LogitNormal(first=700, end=800), 500)
    assert part.min() >= 700
    assert part.max() < 800


@pytest.mark.parametrize(
    "timesteps",
    [Uniform(end=1001), Uniform(first=5, end=5), Uniform(first=1000), LogitNormal(mean=-50, first=999)],
)
def test_a_range_that_cannot_be_drawn_from_is_refused(timesteps):
    with pytest.raises(UserError, match="data.params.timesteps"):
        drawn(timesteps, 1)


def test_a_config_names_them_and_a_resume_goes_on_bit_for_bit(train, capsys):
    words = ["data.params.timesteps={target: ldm.data.timesteps.LogitNormal, params: {mean: 1.0}}"]
    words += ["data.params.offset_noise=0.1", *QUICK, "lightning.callbacks.validation=null"]
    whole = train(*words, "lightning.trainer.max_steps=4", name="whole")
    part = train(*words, "lightning.trainer.max_steps=2", name="part")
    plain = train(
        *QUICK, "lightning.callbacks.validation=null", "lightning.trainer.max_steps=2", name="plain"
    )
    assert read_rows(part / "metrics.jsonl")[0]["loss"] != read_rows(plain / "metrics.jsonl")[0]["loss"]
    assert resume(part, "lightning.trainer.max_steps=4") == 0
    assert (part / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert main(["-b", RECIPE, "-t", "false", "data.params.timesteps.params.end=2000"]) == 2
    assert "from 0 to below 2000" in capsys.readouterr().err
