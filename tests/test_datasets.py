"""Published datasets as they lie on the disk, and scores by their own formulas; DINOv2 beside DINO."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from ldm.config import load_settings
from ldm.data.images import image_files, load_image
from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.benchmark_tasks import Task, in_a_folder, prompt_overrides
from ldm.evaluation.datasets import read_dataset
from ldm.evaluation.features import Dino
from ldm.evaluation.protocol import fill_in, prompt_set, without_identifier
from ldm.evaluation.settings import EvaluationSettings
from ldm.randomness import generator
from tests.conftest import PROJECT

CAT = PROJECT / "assets" / "benchmark" / "cat"


def custom_concept(folder):
    shutil.copytree(CAT, folder / "benchmark_dataset" / "pet_cat1")
    (folder / "prompts").mkdir()
    (folder / "prompts" / "cat.txt").write_text("Photo of a {}.\n{} swimming in a pool.\n\n")
    entry = {
        "instance_prompt": "photo of a <new1> cat",
        "class_prompt": "cat",
        "instance_data_dir": "./benchmark_dataset/pet_cat1",
        "class_data_dir": "./regularization/pet_cat",
        "prompt_filename": "prompts/cat.txt",
    }
    left_out = {**entry, "instance_data_dir": "./benchmark_dataset/pet_cat9"}
    (folder / "dataset.json").write_text(json.dumps([entry, left_out]))
    return folder


def dreambench_plus(folder):
    for kind in ("images", "captions"):
        (folder / kind / "animal").mkdir(parents=True)
    shutil.copy(image_files(CAT)[0], folder / "images" / "animal" / "03.png")
    (folder / "captions" / "animal" / "03.txt").write_text(
        "cat\na photo of cat on the beach\nan oil painting of cat\nCats near a location for cattle\n"
    )
    (folder / "captions" / "animal" / "04.txt").write_text("cat\na cat without a picture\n")
    return folder


def test_customconcept101(tmp_path):
    (subject,) = read_dataset(custom_concept(tmp_path))
    assert (subject.name, subject.class_word, len(image_files(subject.folder))) == ("pet_cat1", "cat", 5)
    assert subject.prompts == ("Photo of a [V] {class}.", "[V] {class} swimming in a pool.")
    prompt = fill_in(subject.prompts[1], "cat")
    assert (prompt, without_identifier(prompt)) == ("[V] cat swimming in a pool.", "cat swimming in a pool.")


def test_dreambench_plus(tmp_path):
    (subject,) = read_dataset(dreambench_plus(tmp_path))
    assert (subject.name, subject.class_word) == ("animal_03", "cat")
    own = in_a_folder(subject, tmp_path / "out")
    assert [path.name for path in image_files(own.folder)] == ["03.png"]
    assert in_a_folder(own, tmp_path / "out") == own
    prompts = ("a photo of [V] {class} on the beach", "an oil painting of [V] {class}")
    assert subject.prompts == (*prompts, "[V] {class}s near a location for cattle")
    words = prompt_overrides(Task("prior", subject, "cat", tmp_path))
    config = load_settings([PROJECT / "configs" / "evaluation.yaml"], EvaluationSettings, words)
    assert config["prompt_sets"][prompt_set(config, "cat")] == list(subject.prompts)


@pytest.mark.parametrize("content", ["{}", "[", "[5]", '[{"class_prompt": "cat"}]', "[]"])
def test_a_damaged_list_is_one_line(tmp_path, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="dataset") as error:
        read_dataset(tmp_path)
    assert "\n" not in str(error.value)


def test_scores_are_those_of_the_datasets_own_formulas():
    """CustomConcept101: mean of all cosines, and CLIPScore, 2.5 max(cosine, 0); DreamBench++: 100 cosines of pairs."""
    draws = generator(0, "test")
    drawn, real, texts = (torch.randn(n, 16, generator=draws) for n in (6, 4, 6))
    unit = [f.numpy() / np.sqrt(np.sum(f.numpy() ** 2, axis=1, keepdims=True)) for f in (drawn, real, texts)]
    alignment = np.mean(unit[0] @ unit[1].T)
    assert float(metrics.subject_fidelity(drawn, real).mean()) == pytest.approx(alignment, abs=1e-6)
    clip_score = np.mean(2.5 * np.clip(np.sum(unit[0] * unit[2], axis=1), 0, None))
    ours = 2.5 * metrics.prompt_fidelity(drawn, texts).clamp(min=0).mean()
    assert float(ours) == pytest.approx(clip_score, abs=1e-6)
    pairs = np.mean(
        [100 * np.sum(one * unit[1][0]) for one in unit[0]]
    )  # the one photograph beside each picture
    assert 100 * float(metrics.subject_fidelity(drawn, real[:1]).mean()) == pytest.approx(pairs, abs=1e-4)


def test_dinov2_is_the_librarys_own(tmp_path):
    network = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Dinov2Model(Dinov2Config(**network, image_size=42, patch_size=14)).save_pretrained(tmp_path)
    processor = BitImageProcessor(
        size={"shortest_edge": 64}, crop_size={"height": 56, "width": 56}, resample=3
    )
    processor.save_pretrained(tmp_path)
    images = [load_image(path) for path in image_files(CAT)]
    theirs = Dinov2Model.from_pretrained(tmp_path)
    with torch.no_grad():
        pixels = processor(images=images, return_tensors="pt")["pixel_values"]
        expected = theirs(pixels).last_hidden_state[:, 0]
    assert torch.allclose(Dino(str(tmp_path)).images(images), expected, atol=1e-4)
