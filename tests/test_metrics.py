"""The metrics, against values computed by hand and against other libraries."""

import math
import re
import types

import pytest
import torch
from PIL import Image
from torchmetrics.functional import pairwise_cosine_similarity
from torchmetrics.functional.classification import binary_auroc
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer, ViTImageProcessor

from ldm.errors import UserError
from ldm.evaluation import benchmark, metrics, scores
from ldm.evaluation.features import Clip, Dino, Lpips, load_networks
from ldm.evaluation.preprocessing import Preprocessing
from ldm.evaluation.statistics import bootstrap_interval, summary, widening
from ldm.pages.page import environment
from ldm.randomness import generator
from tests.tiny_features import tiny_features

ALONG_X = torch.tensor([[2.0, 0.0]])
REAL = torch.tensor([[3.0, 0.0], [0.0, 5.0], [1.0, 1.0]])


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    return tiny_features(tmp_path_factory.mktemp("features"))


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    values = torch.randint(
        256, (height, width, 3), generator=generator(seed, "test image"), dtype=torch.uint8
    )
    return Image.fromarray(values.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def test_fidelity_is_the_mean_cosine_with_the_real_images():
    assert metrics.subject_fidelity(ALONG_X, REAL).tolist() == pytest.approx([(1 + 0 + math.sqrt(0.5)) / 3])


def test_real_images_are_not_compared_with_themselves():
    half = math.sqrt(0.5)
    assert metrics.real_fidelity(REAL).tolist() == pytest.approx([half / 2, half / 2, half])
    assert metrics.real_fidelity(REAL[:1]).isnan().all()


def test_prompt_fidelity_pairs_image_i_with_text_i():
    images, texts = torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([[-2.0, 0.0], [1.0, 0.0]])
    assert metrics.prompt_fidelity(images, texts).tolist() == pytest.approx([-1.0, 0.6])


def test_diversity_is_the_mean_over_pairs():
    half = math.sqrt(0.5)
    pairs = [1 - 0, 1 - half, 1 - half]
    spread = metrics.diversity(metrics.feature_distances(REAL))
    assert spread.tolist() == pytest.approx([(2 - half) / 2, (2 - half) / 2, 1 - half])
    assert float(spread.mean()) == pytest.approx(sum(pairs) / 3)


def test_cosine_agrees_with_torchmetrics():
    draws = generator(0, "test")
    a, b = torch.randn(7, 5, generator=draws), torch.randn(4, 5, generator=draws)
    torch.testing.assert_close(metrics.cosine(a, b).float(), pairwise_cosine_similarity(a, b))


def test_auc_by_hand_and_against_torchmetrics():
    assert metrics.auc(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0])) == pytest.approx(
        (1 + 1 + 0 + 0.5) / 4
    )
    scores = torch.rand(60, generator=generator(1, "test")).mul(10).round().div(10)
    labels = (torch.arange(60) % 3 == 0).long()
    ours = metrics.auc(scores[labels == 1], scores[labels == 0])
    assert ours == pytest.approx(float(binary_auroc(scores, labels)), abs=1e-6)


def test_bootstrap_interval_holds_the_mean_shrinks_and_repeats():
    values = torch.randn(400, generator=generator(2, "test"))
    low, high = bootstrap_interval(values)
    error = float(values.std()) / math.sqrt(len(values))
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert low < float(values.mean()) < high
    assert (low, high) == bootstrap_interval(values)
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.98])
def test_intervals_over_prompts_hold_the_truth_as_often_as_they_say(correlation):
    """25 prompts of 4 images: about 95 % of intervals contain the mean; by resampling images, fewer would."""
    draws = generator(4, "test")
    clusters = [prompt for prompt in range(25) for _ in range(4)]
    by_prompt, by_image = 0, 0
    for _ in range(200):
        shared = torch.randn(25, generator=draws).repeat_interleave(4) * math.sqrt(correlation)
        values = shared + torch.randn(100, generator=draws) * math.sqrt(1 - correlation)
        low, high = bootstrap_interval(values, clusters, resamples=400)
        by_prompt += low < 0 < high
        low, high = bootstrap_interval(values, resamples=400)
        by_image += low < 0 < high
    assert 0.88 < by_prompt / 200 < 0.99
    if correlation > 0.9:
        assert by_image / 200 < 0.75


def test_a_single_prompt_is_resampled_by_its_images():
    values = torch.randn(20, generator=generator(5, "test"))
    assert bootstrap_interval(values, ["a dog"] * 20) == bootstrap_interval(values)


def test_the_widening_is_students():
    """Tabulated quantiles of Student's t, divided by 1.960; close to 1 for many clusters."""
    for count, quantile in ((3, 4.303), (6, 2.571), (12, 2.201), (30, 2.045)):
        assert widening(count, 0.95) == pytest.approx(
            quantile / 1.960 * math.sqrt(count / (count - 1)), rel=0.01
        )
    assert widening(1, 0.95) == 1
    assert widening(1000, 0.95) == pytest.approx(1, abs=0.003)


def test_clusters_weigh_by_their_images():
    """One prompt of 6 and two of 1: the mean of a draw is over images, as the reported mean is."""
    values, clusters = [1.0] * 6 + [0.0, 0.0], ["a"] * 6 + ["b", "c"]
    low, high = bootstrap_interval(values, clusters)  # of draws from all 0 to all 1, around the mean of 0.75
    assert (0.75 - low, high - 0.75) == pytest.approx((0.75 * widening(3, 0.95), 0.25 * widening(3, 0.95)))
    assert summary([*values, math.nan], [*clusters, "d"])["count"] == 8


def test_a_metric_is_one_entry_of_one_table(monkeypatch):
    """A new entry appears in the rows, the result, the tables and the page."""
    added = metrics.Metric("size", "SIZE", "subject", lambda seen: seen.dino.norm(dim=1), "SIZE: length.")
    monkeypatch.setitem(metrics.METRICS, "size", added)
    rows = [
        scores.Row(
            "a.png", "subject", "a dog", "a dog", 0, 0, {**dict.fromkeys(metrics.METRICS, 0.5), "size": 7.5}
        ),
        scores.Row("b.png", "class", "a dog", "a dog", 0, 1, dict.fromkeys(metrics.METRICS, 0.5)),
    ]
    found = scores.summarize(rows)
    assert found["size"] == {"value": 7.5, "low": None, "high": None, "count": 1}
    assert rows[0].cells()["size"] == 7.5
    table = environment().get_template("parts.html").module.score_table
    page = table([("ours", found, "ours")], list(metrics.METRICS.values()))
    assert re.search(r"SIZE <span[^>]*>↑</span>", page)
    assert "7.500" in page
    assert "| SIZE |" in benchmark.markdown([("ours", found, "ours")], "x")


@pytest.mark.parametrize(("subjects", "seeds"), [(6, 1), (6, 3), (1, 3)])
@pytest.mark.parametrize("spread", [(1, 0.3, 0.3), (0.1, 1, 1)])  # of subjects, seeds, and prompts
def test_intervals_of_a_benchmark_hold_the_truth_as_often_as_they_say(subjects, seeds, spread):
    """Even for few subjects, where a plain percentile bootstrap contains the truth in 86 cases of 100."""
    draws = generator(6, "test", subjects, seeds)
    cells = [(str(subject), seed) for subject in range(subjects) for seed in range(seeds)]
    held = 0
    for _ in range(300):
        of_subject, of_cell = (
            torch.randn(subjects, 1, generator=draws),
            torch.randn(subjects, seeds, generator=draws),
        )
        values = spread[1] * of_cell + spread[2] * torch.randn(subjects, seeds, 25, generator=draws).mean(2)
        if subjects > 1:
            values += spread[0] * of_subject
        low, high = bootstrap_interval(values.flatten(), benchmark.interval_levels(cells), resamples=400)
        held += low < 0 < high
    assert 0.91 < held / 300 < 0.98


def test_a_benchmarks_difference_is_paired_and_shown_only_beside_its_interval():
    """The difference is much smaller than the spread of subjects, so only pairing reveals it."""
    draws = generator(7, "test")

    def result(value: float) -> dict:
        return dict.fromkeys(("metrics", "real"), {key: {"value": value} for key in metrics.METRICS})

    level = {
        cell: float(torch.randn((), generator=draws)) for cell in [(s, n) for s in "abcdef" for n in (0, 1)]
    }
    noise = [0.01 * float(torch.randn((), generator=draws)) for _ in level]
    ours = {cell: result(value + 0.05 + n) for (cell, value), n in zip(level.items(), noise, strict=True)}
    theirs = {cell: result(value) for cell, value in level.items()}
    found = benchmark.differences(ours, theirs)["dino"]
    assert benchmark.is_significant(found)
    assert found["low"] < 0.05 < found["high"]
    apart = [benchmark.means(side)["metrics"]["dino"] for side in (ours, theirs)]
    assert apart[0]["low"] < apart[1]["high"]
    shown = benchmark.markdown([], "x", {"ours": benchmark.differences(ours, theirs)}, "theirs")
    assert f"**{found['value']:+.3f} (" in shown
    del ours["a", 0]  # not done yet: what is compared is what both have
    assert benchmark.differences(ours, theirs)["dino"]["count"] == 11
    assert "**" not in benchmark.markdown([], "x", {"same": benchmark.differences(theirs, theirs)}, "theirs")


def test_summary_leaves_out_what_was_not_measured():
    alone = {"value": 1.0, "low": None, "high": None, "count": 1}
    assert summary([1.0, math.nan], ["a", "b"]) == alone  # no interval, so nothing that could be called shown
    assert summary([math.nan]) == {"value": None, "low": None, "high": None, "count": 0}


@pytest.mark.parametrize("size", [(50, 80), (97, 41), (32, 32)])
def test_preprocessing_is_the_librarys_own(size):
    clip = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    vit = ViTImageProcessor(size={"height": 24, "width": 24}, resample=2)
    image = noise_image(*size)
    for processor in (clip, vit):
        ours = Preprocessing.of(processor.to_dict())(image)
        theirs = torch.as_tensor(processor(image, return_tensors="pt")["pixel_values"][0])
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_one_number_for_a_size_means_what_it_meant_in_old_files():
    shared = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": 224}
    assert Preprocessing.of(shared).resize == (224, 224)
    old_clip = Preprocessing.of({**shared, "do_center_crop": True, "crop_size": 224})
    assert (old_clip.resize, old_clip.crop) == (224, (224, 224))


def test_clip_scores_are_the_librarys_logits(networks):
    clip = Clip(str(networks[0]), batch_size=2)
    images, texts = [noise_image(40, 32, seed) for seed in range(3)], ["a dog", "a cat in the snow", "a dog"]
    ours = metrics.prompt_fidelity(clip.images(images), clip.texts(texts))

    model = CLIPModel.from_pretrained(networks[0]).eval()
    tokens = CLIPTokenizer.from_pretrained(networks[0])(texts, padding=True, return_tensors="pt")
    pixels = torch.stack([clip.preprocessing(image) for image in images])
    with torch.no_grad():
        logits = model(**tokens, pixel_values=pixels).logits_per_image / model.logit_scale.exp()
    torch.testing.assert_close(ours.float(), logits.diagonal(), atol=1e-5, rtol=1e-4)


def test_features_do_not_depend_on_the_batch_size(networks):
    images = [noise_image(32, 32, seed) for seed in range(5)]
    one, all_at_once = Dino(str(networks[1]), batch_size=1), Dino(str(networks[1]), batch_size=8)
    torch.testing.assert_close(one.images(images), all_at_once.images(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("assets/nowhere", "no such folder"),
        ("tests", "no model.safetensors"),
        ("nobody/nothing", "give a folder"),
    ],
)
def test_a_network_that_is_not_there_is_one_line(where, says):
    with pytest.raises(UserError, match=says) as error:
        Dino(where)
    assert "\n" not in str(error.value)


def test_a_clip_folder_is_no_dino(networks):
    with pytest.raises(UserError, match="not a ViTModel"):
        Dino(str(networks[0]))


def test_lpips_absent_or_present(networks, monkeypatch):
    settings = {"dino": str(networks[1]), "clip": str(networks[0]), "batch_size": 2}
    settings |= {"dino_revision": None, "clip_revision": None, "lpips": "alex"}
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    with pytest.raises(UserError, match="set it to null"):
        load_networks(settings)

    class Fake(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()

        def forward(self, a, b):
            return (a - b).abs().mean(dim=(1, 2, 3), keepdim=True)

    monkeypatch.setitem(__import__("sys").modules, "lpips", types.SimpleNamespace(LPIPS=Fake))
    white, black = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4))
    assert Lpips("alex").distances([white, black]).tolist() == [[0.0, 2.0], [2.0, 0.0]]
