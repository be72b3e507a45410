"""scripts/benchmark_quality.py --methods: each method, with and without the prior's loss, and what it costs."""

import json
from html import escape

import pytest
import yaml

from ldm.errors import UserError
from ldm.evaluation.benchmark_methods import cost_table, read_methods, typical_costs
from scripts.benchmark_quality import METHODS, main
from tests.conftest import PROJECT
from tests.test_benchmark_quality import pretend  # noqa: F401 - a fixture
from tests.tiny_features import tiny_features

OVERLAYS = {"frozen-text-encoder", "lora", "dora", "oft", "custom-diffusion", "textual-inversion"}


def test_the_file_names_every_method_and_overlay():
    methods = read_methods(METHODS)
    assert {path.stem for method in methods.values() for path in method.configs} == OVERLAYS
    assert all((PROJECT / path).is_file() for method in methods.values() for path in method.configs)
    pairs = [name for name in methods if f"{name}-no-prior" in methods]
    assert len(pairs) == 6
    targets = {f"{name}-untrained" for name in ("full", "lora")}
    assert set(methods) == {
        *pairs,
        *(f"{name}-no-prior" for name in pairs),
        "textual-inversion-no-prior",
        *targets,
    }
    for name in targets:
        assert "model.params.prior_target=untrained" in methods[name].overrides
        assert methods[name].configs == methods[name.removesuffix("-untrained")].configs
    assert all(any("learning_rate=" in word for word in method.overrides) for method in methods.values())


def test_two_methods_of_one_name_are_refused(tmp_path):
    content = yaml.safe_load(METHODS.read_text())
    content["methods"][1]["name"] = "full"
    path = tmp_path / "methods.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match="two methods are called full"):
        read_methods(path)


def test_every_method_is_trained_with_its_overlay_and_rate(pretend, tmp_path):  # noqa: F811
    words = ["--outdir", str(tmp_path), "--subjects", "cat", "--methods"]
    assert main(words) == 0
    trained = [command for command in pretend if command[0] == "main.py"]
    assert len(trained) == 15
    lora = [command for command in trained if command[command.index("--name") + 1] == "lora-no-prior"]
    assert len(lora) == 1
    for command in lora:
        assert "configs/lora.yaml" in command
        assert {"model.params.learning_rate=2.0e-3", "model.params.prior_loss_weight=0"} <= set(command)
    nouns, methods = {}, read_methods(METHODS)
    for command in pretend:
        if command[0] == "scripts/evaluate.py" and "--prompt_noun" in command:
            name = next(
                part
                for part in command[command.index("--outdir") + 1].split("/")
                if part in read_methods(METHODS)
            )
            nouns.setdefault(name, set()).add(command[command.index("--prompt_noun") + 1])
    assert nouns.pop("textual-inversion-no-prior") == {""}
    assert all(found == {"cat"} for found in nouns.values())
    table = (tmp_path / "table.md").read_text()
    for method in methods.values():
        assert f"| {method.title} (1 subject) |" in table
    assert "| The base itself, without training (1 subject) |" in table
    plot = (tmp_path / "fidelity.svg").read_text()
    assert plot.count("<circle") == 2 * len(methods)  # in the chart and in the legend
    assert plot.count('fill="#fff" stroke=') == 2 * sum(name.endswith("-no-prior") for name in methods)
    assert all(f"  {escape(method.title)}</text>" in plot for method in methods.values())
    assert "the class before training" in plot
    before = len(pretend)
    assert main(words) == 0
    assert len(pretend) == before


def test_other_methods_do_not_share_a_folder(pretend, tmp_path, capsys):  # noqa: F811
    words = ["--outdir", str(tmp_path), "--subjects", "cat", "--methods"]
    assert main(words) == 0
    content = yaml.safe_load(METHODS.read_text())
    content["methods"][0]["overrides"] = ["model.params.learning_rate=1.0e-4"]
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    for changed in ([*words, str(other)], words[:-1]):
        assert main(changed) == 2
        assert "a benchmark of other settings (methods." in capsys.readouterr().err


def test_costs_are_medians_and_memory_is_the_most():
    one = {"trained": 10, "weights_bytes": 4e6, "state_bytes": 12e6, "seconds": 0.1, "peak_bytes": 1e9}
    found = typical_costs([one, {**one, "seconds": 0.2, "peak_bytes": 2e9}, {**one, "seconds": 0.9}])
    assert found == {**one, "seconds": 0.2, "peak_bytes": 2e9}
    assert "| LoRA | 10 | 4 | 12 | 200 | 2.00 |" in cost_table({"LoRA": found})


@pytest.mark.slow
def test_two_methods_from_end_to_end(tiny_config, tmp_path):
    """Real trainings and measurements on a tiny base; a second call does nothing again."""
    clip, dino = tiny_features(tmp_path)
    content = yaml.safe_load(METHODS.read_text())
    content["methods"] = [own for own in content["methods"] if own["name"] in ("lora", "textual-inversion")]
    methods = tmp_path / "methods.yaml"
    methods.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"
    recipe = str(PROJECT / "configs" / "dreambooth.yaml")
    words = [
        "--outdir",
        str(out),
        "--subjects",
        "cat",
        "--base",
        recipe,
        str(tiny_config),
        "--methods",
        str(methods),
    ]
    words += ["lightning.logger=null", "lightning.trainer.max_steps=6", "--evaluation"]
    words += [f"networks.dino={dino}", f"networks.clip={clip}", "sampling.images_per_prompt=1"]
    words += [
        "sampling.class_images=2",
        "sampling.steps=2",
        "sampling.sampler=ddim",
        "sampling.guidance_scale=2",
    ]
    words += [
        "prompt_sets.live=['a [V] {class} on the moon']",
        "prompt_sets.object=['a [V] {class} on the moon']",
    ]
    assert main(words) == 0
    costs = json.loads((out / "costs.json").read_text())
    lora = ["LoRA", "LoRA, prior from the untrained model's predictions", "LoRA, no prior loss"]
    assert set(costs) == {*lora, "Textual inversion, no prior loss"}
    assert costs[lora[1]]["trained"] == costs[lora[0]]["trained"]
    assert costs["Textual inversion, no prior loss"]["trained"] == 32
    assert costs["Textual inversion, no prior loss"]["weights_bytes"] == 4 * 32
    assert costs["LoRA"]["trained"] > 32
    assert all(cost["seconds"] > 0 and cost["state_bytes"] > cost["weights_bytes"] for cost in costs.values())
    assert "| LoRA (1 subject) |" in (out / "table.md").read_text()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
    assert len(times) == 5
    assert main(words) == 0
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("metrics.json")}
