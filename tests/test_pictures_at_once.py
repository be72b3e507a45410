"""As many pictures are drawn together as memory holds, and none of them depends on how many."""

import pytest
import torch

from ldm.diffusion.sampling import Sampling
from ldm.models import memory
from ldm.models.latent_diffusion import LatentDiffusion
from tests.conftest import PROJECT

SAMPLING = Sampling("euler_a", 2, 3.0)


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return LatentDiffusion.from_base(PROJECT / "assets" / "base").eval()


@pytest.mark.parametrize(
    "message", ["CUDA out of memory. Tried to allocate", "can't allocate memory: you tried"]
)
def test_where_memory_runs_out_half_as_many_are_drawn(model, monkeypatch, capsys, message):
    prompts, seeds = ["a dog", "a cat"] * 3, range(6)
    plain = model.images(prompts, seeds, SAMPLING, 32, 32, batch_size=1)
    predict, most, asked = model.predict, 4, []

    def little_memory(x, timesteps, conditioning):
        asked.append(len(x))
        if len(x) > most:  # two rows a picture
            raise RuntimeError(message)
        return predict(x, timesteps, conditioning)

    monkeypatch.setattr(model, "predict", little_memory)
    monkeypatch.setattr(model, "at_once", None)
    torch.testing.assert_close(model.images(prompts, seeds, SAMPLING, 32, 32), plain, atol=1e-4, rtol=0)
    assert asked == [12, 6] + [2] * 12
    assert "6 pictures at once need more memory" in capsys.readouterr().err
    most = 1
    with pytest.raises(RuntimeError, match=r"memory"):  # not even one
        model.images(prompts, seeds, SAMPLING, 32, 32)


def test_the_count_follows_free_memory(model, monkeypatch):
    """The need of n pictures is counted on tensors without data; a profile of a real pass gives the same."""
    one, two = (memory._bytes_of_a_pass(model, 64, 64, pictures) for pictures in (1, 2))
    each = two - one
    assert one == pytest.approx(each, rel=0.2)  # little is common to all pictures
    assert two == pytest.approx(profiled(model, rows=4), rel=0.3)
    for free, count in ((3.2, 3), (0.5, 1), (1000, memory.MOST_PICTURES)):
        monkeypatch.setattr(
            memory, "free_bytes", lambda device, free=free: (free * each + one - each) / memory.SHARE
        )
        assert memory.pictures_at_once(model, 64, 64) == count


def profiled(model: LatentDiffusion, rows: int) -> int:
    """Peak bytes of a real pass, from torch's profiler."""
    x = torch.zeros(rows, *model.latent_shape(64, 64))
    conditioning = model.embed([""] * rows)
    with torch.no_grad(), torch.profiler.profile(profile_memory=True) as profiler:
        model.predict(x, torch.zeros(rows, dtype=torch.long), conditioning)
    now = most = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def test_free_memory_is_read(tmp_path):
    free = memory.free_bytes(torch.device("cpu"))
    assert 2**20 < free < 2**50
