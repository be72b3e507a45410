"""The cache of prior samples: equal bits with and without it, and no harm done by it."""

import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm.config import load_config
from ldm.data.prior import PriorBank
from ldm.data.prior_cache import PriorCache
from ldm.methods.base_latents import BaseLatents
from ldm.targets import instantiate_from_config
from tests.conftest import RECIPE
from tests.runs import QUICK

SETTINGS = {
    "base": "a",
    "prompt": "a photo of a dog",
    "size": 64,
    "seed": 23,
    "sampler": "dpmpp_2m_sde",
    "steps": 20,
    "guidance_scale": 1.5,
    "guidance_interval": None,
    "precision": "fp32",
    "count": 8,
    "chunk_size": 4,
}


def latents_of(numbers):
    return torch.stack([torch.full((4, 2, 2), float(number)) for number in numbers])


@pytest.fixture
def bank(tmp_path):
    """`bank(name, **changes)`: a bank in its own folder, whose `drawn` lists the chunks that it had to draw."""
    cache = PriorCache(tmp_path / "cache", gigabytes=1.0)

    def make(name="run", cache=cache, computed_by="torch on a CPU", **changes):
        settings = {**SETTINGS, **changes}
        drawn = []

        def draw(numbers):
            drawn.append(list(numbers))
            return latents_of(numbers)

        made = PriorBank(
            tmp_path / name, settings["count"], settings["chunk_size"], settings, draw, cache, computed_by
        )
        made.drawn = drawn
        return made

    return make


@pytest.mark.parametrize(
    "words",
    [
        ["model.params.clip_skip=2"],
        ["model.params.prediction_type=v_prediction"],
        ["model.params.weights_precision=bf16"],
    ],
)
def test_a_base_that_is_read_otherwise_shares_no_samples(tiny_config, words):
    """Neither the fingerprint of the base's files nor the prior's settings know how a run reads the base."""

    def key(words):
        module = instantiate_from_config(load_config([RECIPE, tiny_config], words)["model"])
        return BaseLatents(module.model, lambda: module.model).computed_by

    assert key([]) == key(["model.params.learning_rate=1e-3"])
    assert key(words) != key([])


def test_a_second_run_draws_nothing_and_trains_on_the_same_bits(train, tmp_path, monkeypatch):
    drawn, draw = [], BaseLatents.draw_prior
    monkeypatch.setattr(BaseLatents, "draw_prior", lambda *words: drawn.append(words) or draw(*words))
    plain = train(*QUICK, name="plain")
    assert len(drawn) == 2
    cached = f"data.params.prior.cache={tmp_path / 'cache'}"
    first, second = train(*QUICK, cached, name="first"), train(*QUICK, cached, name="second")
    assert len(drawn) == 4  # the second run drew none of its two chunks
    for run in (first, second):
        assert (run / "metrics.jsonl").read_bytes() == (plain / "metrics.jsonl").read_bytes()
        for chunk in sorted((plain / "prior").iterdir()):
            assert torch.equal(load_file(run / "prior" / chunk.name)["latents"], load_file(chunk)["latents"])


def test_without_a_cache_nothing_is_shared(bank, tmp_path):
    for name in ("a", "b"):
        alone = bank(name, cache=None)
        alone.fill(range(8))
        assert len(alone.drawn) == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("key", [key for key in SETTINGS if key not in ("count", "chunk_size")])
def test_whatever_latents_depend_on_keeps_runs_apart(bank, key):
    bank("a").fill(range(8))
    other = bank("b", **{key: [0, 500] if key == "guidance_interval" else "another"})
    other.fill(range(8))
    assert len(other.drawn) == 2
    machine = bank("c", computed_by="torch on a GPU")
    machine.fill(range(8))
    assert len(machine.drawn) == 2


def test_a_larger_bank_draws_only_what_is_new(bank):
    bank("a").fill(range(8))
    larger = bank("b", count=10)
    larger.fill(range(10))
    assert larger.drawn == [[8, 9]]
    assert torch.equal(larger.latents(range(10), "cpu"), latents_of(range(10)))


def test_a_damaged_chunk_is_drawn_and_kept_again(bank, tmp_path):
    bank("a").fill(range(8))
    for path in (tmp_path / "cache").iterdir():
        content = path.read_bytes()
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    mended = bank("b")
    mended.fill(range(8))
    assert len(mended.drawn) == 2
    assert torch.equal(mended.latents(range(8), "cpu"), latents_of(range(8)))
    third = bank("c")
    third.fill(range(8))
    assert not third.drawn


NOTES = [
    "[]",
    "{}",
    '{"settings": 5, "sha256": 1}',
    '{"settings": "[", "sha256": ""}',
    '{"settings": "[]"}',
    "{",
]


@pytest.mark.parametrize("about", NOTES)
def test_a_chunk_with_other_notes_is_drawn_again(bank, about):
    first = bank("a")
    first.fill(range(8))
    for path in first.folder.glob("*.safetensors"):
        save_file({"latents": latents_of(range(4))}, path, {"about": about})
    again = bank("a", cache=None)
    again.fill(range(8))
    assert len(again.drawn) == 2


def test_the_longest_unused_chunks_make_room(bank, tmp_path):
    """And nothing else does that a user may keep in that folder."""
    one = bank("a", count=4)
    one.fill(range(4))
    (path,) = (tmp_path / "cache").iterdir()
    (tmp_path / "cache" / "folder").mkdir()
    (tmp_path / "cache" / "thesis.txt").write_bytes(bytes(10**6))
    small = PriorCache(tmp_path / "cache", gigabytes=2.5 * path.stat().st_size / 10**9)
    import os

    os.utime(path, (1, 1))
    bank("b", cache=small, count=4, seed=1).fill(range(4))
    bank("c", cache=small, count=4).fill(range(4))  # uses the first again, which is now the newest
    bank("d", cache=small, count=4, seed=2).fill(range(4))
    kept = [bank(f"again {seed}", cache=small, count=4, seed=seed) for seed in (23, 2)]
    for again in kept:
        again.fill(range(4))
        assert not again.drawn
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) == 2
    assert (tmp_path / "cache" / "thesis.txt").is_file()


def test_several_runs_at_once_leave_whole_chunks_and_nothing_else(bank, tmp_path):
    banks = [bank(f"run {number}", chunk_size=1) for number in range(4)]
    threads = [threading.Thread(target=each.fill, args=(range(8),)) for each in banks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in banks:
        assert torch.equal(each.latents(range(8), "cpu"), latents_of(range(8)))
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == 8
    assert all(load_file(path)["latents"].shape == (1, 4, 2, 2) for path in files)


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(bank, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("a", "b"):
        alone = bank(name, cache=PriorCache(tmp_path / "file" / "cache", gigabytes=1.0))
        alone.fill(range(8))
        assert len(alone.drawn) == 2
