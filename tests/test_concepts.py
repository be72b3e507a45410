"""Several subjects in one model: how samples are divided, what a run writes for each, and how prompts name them."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from ldm.concepts import Learned, fill_in_identifiers
from ldm.data.order import Rounds
from ldm.formats.subject import read_subject
from ldm.methods.load import load_for_sampling
from ldm.models.identifier import ids_of, resolve_identifiers
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.training.rows import read_rows
from tests.conftest import PROJECT, RECIPE
from tests.runs import QUICK, assert_same_run, resume

CAT = {"data_root": "assets/benchmark/cat", "class_word": "cat"}
VASE = {"data_root": "assets/benchmark/vase", "class_word": "vase"}
DOG = {"data_root": "assets/subject/dog", "class_word": "dog"}


def listed(folder: Path, *concepts: dict) -> str:
    path = folder / "concepts.yaml"
    path.write_text(yaml.safe_dump({"data": {"params": {"concepts": list(concepts)}}}))
    return str(path)


@pytest.fixture(scope="module")
def several(tiny_config, tmp_path_factory):
    """A run of 6 steps on a cat, a dog called [rex] with twice the weight, and a vase with the class word dog."""
    from main import main

    folder = tmp_path_factory.mktemp("several")
    rex = {**DOG, "placeholder": "[rex]", "weight": 2}
    third = {**VASE, "class_word": "dog", "identifier": "vup", "prompt": "a drawing of [V] {class_word}"}
    words = ["--base", RECIPE, str(tiny_config), listed(folder, CAT, rex, third), "-l", str(folder / "logs")]
    assert main([*words, "lightning.logger=null", "lightning.trainer.max_steps=6"]) == 0
    return next((folder / "logs").iterdir())


def test_rounds_hold_each_subject_as_often_as_its_weight_says():
    order = Rounds.of_weights(5, [1.0, 2.5, 1])
    assert sum(order.shares) == 9
    drawn = [order(n) for n in range(900)]
    for start in range(0, 900, 9):
        assert Counter(drawn[start : start + 9]) == {0: 2, 1: 5, 2: 2}
    assert len({tuple(drawn[start : start + 9]) for start in range(0, 900, 9)}) > 20  # shuffled anew
    assert drawn != [Rounds.of_weights(6, [1.0, 2.5, 1])(n) for n in range(900)]
    for n in (0, 8, 9, 500):
        assert order.number_among(n, [1]) == drawn[:n].count(1)
        assert order.number_among(n, [0, 2]) == n - drawn[:n].count(1)
    assert [Rounds.of_weights(5, [3.0]).number_among(n, [0]) for n in range(4)] == [0, 1, 2, 3]


def test_a_list_of_one_is_the_run_of_one_bit_for_bit(train, tmp_path):
    words = ("data.params.flip_probability=0.5", "lightning.logger=null")
    one = train(
        *words, "data.params.class_word=cat", "data.params.data_root=assets/benchmark/cat", name="one"
    )
    concepts = f"data.params.concepts=[{json.dumps(CAT)}]"
    listed = train(*words, concepts, name="listed")
    assert_same_run(listed, one)
    for name in ("validation.jsonl", "images/step-000010.png", "images/prior.png", "model/dreambooth.json"):
        assert (listed / name).read_bytes() == (one / name).read_bytes()
    assert (listed / "prior" / "00000.safetensors").read_bytes() == (
        one / "prior" / "00000.safetensors"
    ).read_bytes()


def test_each_subject_has_its_own_losses_and_they_add_up(several):
    rows = read_rows(several / "metrics.jsonl")
    assert len(rows) == 6
    for first, second in zip(rows[::2], rows[1::2], strict=True):  # a round is two batches of two
        for kind in ("subject_loss", "prior_loss"):
            counts = Counter()
            for row in (first, second):
                apart = {key.removeprefix(f"{kind}_"): row[key] for key in row if key.startswith(f"{kind}_")}
                counts.update(apart if len(apart) == 2 else [*apart, *apart])
                assert sum(apart.values()) / len(apart) == pytest.approx(row[kind], rel=1e-6)
            assert set(counts) == {"v1", "rex", "v3"}
    validation = read_rows(several / "validation.jsonl")[-1]
    losses = [validation[f"subject_loss_{name}"] for name in ("v1", "rex", "v3")]
    assert sum(losses) / 3 == pytest.approx(validation["subject_loss"])
    assert validation["drift_rex"] == validation["drift_v3"] != validation["drift_v1"]  # both are dogs


def test_classes_share_their_prior_samples_and_others_have_their_own(several):
    assert {path.name for path in (several / "prior").iterdir()} == {"0-cat", "1-dog"}
    images = {path.name for path in (several / "images").iterdir()}
    assert "prior-1-dog.png" in images  # of the cat not all samples were needed


def test_every_placeholder_is_known_to_what_a_run_writes(several):
    subjects = (
        Learned("le", "cat", "[V1]"),
        Learned("epz", "dog", "[rex]"),
        Learned("vup", "dog", "[V3]"),
    )
    for path in (several, several / "checkpoints" / "best.ckpt", several / "model"):
        loaded = load_for_sampling(path)
        assert loaded.subjects == subjects
        prompt = loaded.with_identifier("[V1] cat beside [rex] dog and [V3] dog")
        assert prompt == "le cat beside epz dog and vup dog"
    card = (several / "model" / "README.md").read_text()
    assert "| Identifier of [rex] | epz |" in card
    assert "a photo of le cat on the beach\na photo of epz dog on the beach" in card
    assert str(PROJECT) not in card
    assert read_subject(several / "model").identifier == "le"
    page = (several / "report.html").read_text()
    assert all(f">{placeholder} 00." in page for placeholder in ("[V1]", "[rex]", "[V3]"))  # photographs


CAT_AND_VASE = (
    *QUICK,
    f"data.params.concepts=[{json.dumps(CAT)},{json.dumps(VASE)}]",
    "lightning.trainer.max_steps=3",
)


def assert_same_curve(run, other):
    rows = zip(read_rows(run / "metrics.jsonl"), read_rows(other / "metrics.jsonl"), strict=True)
    for one, another in rows:
        assert one.keys() == another.keys()
        for key in one:
            assert one[key] == pytest.approx(another[key], rel=1e-4), key


def test_accumulation_walks_the_same_curve(train):
    whole = train(*CAT_AND_VASE, "data.params.batch_size=3", name="whole")
    words = ("data.params.batch_size=1", "lightning.trainer.accumulate_grad_batches=3")
    assert_same_curve(whole, train(*CAT_AND_VASE, *words, name="parts"))


@pytest.mark.slow
def test_two_processes_walk_the_same_curve(train, tiny_config, tmp_path):
    """A step of 4 samples: in one process, and two in each of two; each draws its half of the prior samples."""
    logs = tmp_path / "two"
    command = [sys.executable, "main.py", "--base", RECIPE, str(tiny_config), "-l", str(logs), *CAT_AND_VASE]
    command += ["data.params.batch_size=2", "lightning.trainer.devices=2"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    two, whole = next(logs.iterdir()), train(*CAT_AND_VASE, "data.params.batch_size=4", name="whole")
    assert_same_curve(whole, two)
    first, second = (read_rows(run / "validation.jsonl") for run in (whole, two))
    assert [row.keys() for row in first] == [row.keys() for row in second]
    assert first[0] == pytest.approx(second[0], rel=1e-4)
    assert {path.name for path in (two / "prior").iterdir()} == {
        path.name for path in (whole / "prior").iterdir()
    }


def test_a_resume_goes_on_bit_for_bit_wherever_the_photographs_lie_now(train, tmp_path):
    for name in ("cat", "vase"):
        (tmp_path / "here").mkdir(exist_ok=True)
        (tmp_path / "here" / name).symlink_to(PROJECT / "assets" / "benchmark" / name)
    concepts = [{**CAT, "data_root": str(tmp_path / "here" / "cat")}, VASE]
    words = (*QUICK, f"data.params.concepts={json.dumps(concepts)}")
    whole = train(*words, "lightning.trainer.max_steps=5", name="whole")
    half = train(*words, "lightning.trainer.max_steps=3", name="half")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = f"data.params.concepts.0.data_root={tmp_path / 'there' / 'cat'}"
    assert resume(half, "lightning.trainer.max_steps=5", moved) == 0
    assert_same_run(half, whole)
    assert resume(half, "lightning.trainer.max_steps=6", moved, "data.params.concepts.1.weight=2") == 2


def test_prompts_name_one_of_several():
    one, two = Learned("sks", "dog"), (Learned("sks", "dog", "[V1]"), Learned("vup", "cat", "[rex]"))
    assert fill_in_identifiers("[V] and [rex]", [one]) == "sks and [rex]"
    assert fill_in_identifiers("a [V1] dog, [rex]", two) == "a sks dog, vup"
    assert fill_in_identifiers("[V] on the moon", two[1:]) == "vup on the moon"
    from ldm.errors import UserError

    for prompt, subjects in (("[V] dog", two), ("[V3] dog", two), ("[V] dog", ())):
        with pytest.raises(UserError, match="must be a learned subject"):
            fill_in_identifiers(prompt, subjects)


def test_auto_identifiers_are_different_and_far_apart(tiny):
    tokenizer = LatentDiffusion.from_base(tiny).tokenizer
    found = resolve_identifiers(["auto", "sks", "auto", "auto", "auto"], tokenizer, 23)
    assert found[0] == resolve_identifiers(["auto", "sks"], tokenizer, 23)[0]
    assert found[1] == "sks"
    ids = sorted(ids_of(word, tokenizer)[0] for word in found)
    assert min(b - a for a, b in zip(ids, ids[1:], strict=False)) > len(tokenizer) / 20


@pytest.mark.parametrize(
    ("concepts", "words", "told"),
    [
        ([], (), "data.params.concepts is []: it must be a list of subjects"),
        ([{"class_word": "cat"}], (), "concepts.0.data_root is missing"),
        ([{**CAT, "clas_word": "cat"}], (), "concepts.0.clas_word'; did you mean 'class_word'?"),
        ([{**CAT, "weight": 0}], (), "concepts.0.weight is 0: it must be a finite number above 0"),
        (
            [CAT, {**VASE, "placeholder": "V2"}],
            (),
            "concepts.1.placeholder is 'V2': it must be a name in brackets",
        ),
        ([CAT, {**VASE, "placeholder": "[V1]"}], (), "each of several subjects needs"),
        (
            [{**CAT, "identifier": "vup"}, {**VASE, "identifier": "vup"}],
            (),
            "two subjects have the identifier",
        ),
        ([{**CAT, "prior_prompt": "a [V] cat"}], (), "concepts.0.prior_prompt 'a [V] cat' is for the class"),
        ([{**CAT, "prompt": "a cat"}, VASE], (), "'a cat' of the subject's images: write [V]"),
        (["cat"], (), "concepts.0 is 'cat': it must be keys and values"),
        ([CAT, VASE], ("--class_word", "dog"), "--class_word is for one subject"),
        ([CAT, VASE], ("data.params.reg_data_root=assets",), "data.params.reg_data_root is for one subject"),
        ([CAT, VASE], ("data.params.concepts.2.weight=2",), "'data.params.concepts.2' is not an item"),
    ],
)
def test_a_mistake_is_told_in_one_line(tiny_config, tmp_path, capsys, monkeypatch, concepts, words, told):
    from main import main

    monkeypatch.chdir(PROJECT)
    base = ["--base", RECIPE, str(tiny_config), listed(tmp_path, *concepts) if concepts != ["cat"] else ""]
    if concepts == ["cat"]:
        base, words = base[:3], ("data.params.concepts=[cat]",)
    assert main([*base, "-l", str(tmp_path / "logs"), *words]) == 2
    message = capsys.readouterr().err
    assert told in message
    assert message.count("error: ") == 1
    assert not (tmp_path / "logs").exists()
