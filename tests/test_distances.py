"""Distances between distributions of pictures: they see what the classifier of the embedded world does not."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from ldm.errors import UserError
from ldm.evaluation.features import Dino
from ldm.randomness import generator
from ldm.world.distances import (
    FLOOR,
    compare,
    describe,
    dino_looks,
    frechet,
    kernel,
    lines,
    read_way,
    rows,
    standardised,
    world_pictures,
)
from ldm.world.drawing import World
from tests.conftest import PROJECT

COUNT = 260


@pytest.fixture(scope="module")
def seen():
    """The world's pictures, other ones by the same captions, the features to compare in, and the floor."""
    world = World(PROJECT / "assets" / "world")
    real, other = (world_pictures(world, purpose, COUNT) for purpose in ("distance real", "distance floor"))
    look_by = dino_looks(Dino(str(PROJECT / "assets" / "features" / "dino")))
    return world, real, other, look_by, compare(real, other, look_by)


def smeared(pixels):
    return F.interpolate(F.interpolate(pixels, scale_factor=0.5, mode="area"), size=64, mode="bilinear")


def neon(pixels):
    grey = pixels.mean(dim=1, keepdim=True)
    return (grey + 1.6 * (pixels - grey)).clamp(-1, 1)


def one_each(world):
    """Of every noun its first member alone."""
    poor = World(world.art)
    poor.known = {noun: members[:1] for noun, members in world.known.items()}
    return world_pictures(poor, "distance floor", COUNT).pixels


@pytest.mark.parametrize(
    ("flaw", "look", "measures"),
    [
        ("smeared", "detail", ("Frechet", "kernel")),
        ("neon", "DINO", ("Frechet", "kernel")),
        ("one each", "DINO", ("Frechet",)),
    ],
)
def test_a_flaw_is_farther_from_the_world_than_the_world_is(seen, flaw, look, measures):
    world, real, other, look_by, floor = seen
    pixels = {"smeared": smeared, "neon": neon}.get(flaw, lambda _: one_each(world))(other.pixels)
    drawn = replace(other, pixels=pixels)
    found = rows(compare(real, drawn, {look: look_by[look]}, by_noun=False), floor)
    for measure in measures:
        assert found[f"{look}, {measure}"]["above_low"] > 0, measure


def test_other_pictures_of_the_world_are_at_the_floor(seen):
    world, real, _, look_by, floor = seen
    again = compare(real, world_pictures(world, "distance again", COUNT), look_by, by_noun=False)
    for name, row in rows(again, floor).items():
        assert row["above_low"] < 0 < row["above_high"], name


def test_the_captions_are_the_same_and_the_rest_is_not(seen):
    _, real, other, _, _ = seen
    assert (real.captions, real.nouns) == (other.captions, other.nouns)
    assert len(set(real.nouns)) == 20
    assert not torch.equal(real.pixels, other.pixels)


def test_distances_of_known_distributions():
    draws = generator(0, "test")
    one, two = (torch.randn(20_000, 4, generator=draws) for _ in range(2))
    assert frechet(one, two) == pytest.approx(0, abs=0.01)
    assert frechet(one, two + 0.5) == pytest.approx(4 * 0.5**2, rel=0.05)  # only the means differ
    assert frechet(one, 2 * two) == pytest.approx(4 * 1.0, rel=0.05)  # only the deviations do
    few = [kernel(*(torch.randn(30, 4, generator=draws) for _ in range(2))) for _ in range(60)]
    assert abs(sum(few) / 60) < 2 * torch.tensor(few).std() / 60**0.5  # unbiased
    assert kernel(one[:500], two[:500] + 1) > 1000
    real, drawn = standardised(3 * one + 7, 3 * two + 7)
    assert frechet(real, drawn) == pytest.approx(frechet(one, two), abs=0.01)


def test_ways_of_drawing_are_read_and_told(seen):
    _, _, _, _, floor = seen
    assert describe(read_way("euler_a/25/2")) == "euler_a, 25 steps, guidance 2"
    for word in ("euler_a", "euler_a/x/2", "euler_a/25/2/3", "uler/25/2"):
        with pytest.raises(UserError):
            read_way(word)
    told = lines({FLOOR: rows(floor, floor), "a way": rows(floor, floor)})
    assert told[0] == FLOOR
    assert any("farthest" in line for line in told)
