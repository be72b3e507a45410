"""The methods that a quality benchmark compares: their overlays on the recipe, their costs, and their plot."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ldm.config import load_settings
from ldm.errors import UserError
from ldm.evaluation.benchmark import Means
from ldm.evaluation.charts import Mark, scatter_chart
from ldm.values import FolderName, Text

COST_FILE = "cost.json"
"""In a run's folder; `ldm.training.cost.Cost` writes it."""
COST_CALLBACK = "lightning.callbacks.cost={target: ldm.training.cost.Cost, params: {}}"


@dataclass(frozen=True)
class MethodSettings:
    """An item of configs/benchmark/methods.yaml, which explains each key."""

    name: FolderName
    title: Text
    configs: Sequence[Text]
    overrides: Sequence[Text]
    prior: Sequence[Literal["noise", "untrained", "none"]]
    class_noun: bool


@dataclass(frozen=True)
class Prior:
    """The prior loss of a row: suffixes of the row's name and title, and overrides."""

    suffix: str = ""
    words: str = ""
    overrides: Sequence[str] = ()


PRIORS = {
    "noise": Prior(),
    "untrained": Prior(
        "-untrained",
        ", prior from the untrained model's predictions",
        ["model.params.prior_target=untrained"],
    ),
    "none": Prior("-no-prior", ", no prior loss", ["model.params.prior_loss_weight=0"]),
}
"""By the values of a method's `prior`."""

AXES = {"class_div": "DIV of the class (higher: more is kept)", "dino": "DINO with the subject"}
"""Metrics of the plot, and their labels."""


@dataclass(frozen=True)
class MethodsFile:
    """The whole file."""

    methods: Sequence[MethodSettings]


@dataclass(frozen=True)
class Method:
    """One row of the table: a way to train, with one of PRIORS."""

    title: str
    configs: Sequence[Path]
    overrides: Sequence[str]
    class_noun: bool
    family: str
    """The file's item that this is a row of."""
    has_prior: bool
    """Whether it trains with the prior loss."""


def read_methods(path: Path) -> dict[str, Method]:
    """The rows that `path` describes, by the names of their folders. Raises UserError for duplicate names."""
    rows: dict[str, Method] = {}
    for item in load_settings([path], MethodsFile)["methods"]:
        own = MethodSettings(**item)
        configs = [Path(config) for config in own.configs]
        found = {
            own.name + PRIORS[prior].suffix: Method(
                own.title + PRIORS[prior].words,
                configs,
                [*own.overrides, *PRIORS[prior].overrides],
                own.class_noun,
                own.name,
                prior != "none",
            )
            for prior in own.prior
        }
        if taken := rows.keys() & found.keys():
            raise UserError(f"{path}: two methods are called {min(taken)}: give each a name of its own")
        rows |= found
    return rows


def read_cost(task_folder: Path) -> dict[str, float] | None:
    """The cost of training one task; None if not measured."""
    found = sorted((task_folder / "run").glob(f"*/{COST_FILE}"))
    return json.loads(found[-1].read_text()) if found else None


def typical_costs(costs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Medians over tasks, since other work on the machine slows some; of the memory the maximum, which is needed."""
    keys = costs[0].keys() if costs else ()
    medians = {key: statistics.median(cost[key] for cost in costs) for key in keys}
    return medians | ({"peak_bytes": max(cost["peak_bytes"] for cost in costs)} if costs else {})


def cost_table(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Markdown of `typical_costs` by title."""
    lines = [
        "| | trained numbers | weights alone, MB | a full state, MB | ms a step | peak memory, GB |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for title, cost in costs.items():
        lines.append(
            f"| {title} | {cost['trained']:,.0f} | {cost['weights_bytes'] / 1e6:.3g} |"
            f" {cost['state_bytes'] / 1e6:.3g} | {1e3 * cost['seconds']:.0f} | {cost['peak_bytes'] / 1e9:.2f} |"
        )
    note = "Peak memory: of the training process, its libraries included; of the GPU's allocator where there is one."
    return "\n".join([*lines, "", note]) + "\n"


def fidelity_plot(variants: Mapping[str, Means], methods: Mapping[str, Method]) -> str | None:
    """SVG: subject fidelity against preservation of the class, with a point for each of `methods`; None without any.

    Rows of one method have one colour; those without the prior loss are rings. A line shows the untrained base's class.
    """
    families = list(dict.fromkeys(method.family for method in methods.values()))
    marks = []
    for name, method in methods.items():
        x, y = (variants[name]["metrics"][key]["value"] if name in variants else None for key in AXES)
        if x is not None and y is not None:
            group = families.index(method.family)
            marks.append(Mark(x, y, method.title, group, hollow=not method.has_prior))
    if not marks:
        return None
    before = variants["base"]["metrics"]["class_div"]["value"] if "base" in variants else None
    line = None if before is None else (before, "the class before training")
    return scatter_chart(marks, AXES["class_div"], AXES["dino"], line)
