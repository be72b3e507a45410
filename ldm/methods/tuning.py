"""What trains is a plug: which weights train, what a checkpoint holds, how to get the untrained model back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.formats.modules import misfit
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.schema import check_target
from ldm.targets import get_class, instantiate_from_config
from ldm.values import Rates

Untrained = Callable[[], AbstractContextManager[LatentDiffusion]]
"""`with untrained() as base:` gives the model as it was before training. Dropping `untrained` frees its memory."""


@runtime_checkable
class Tuning(Protocol):
    """One way to fine-tune a model. A config names it under `model.params.tuning`, as `target` and `params`."""

    def attach(self, model: LatentDiffusion) -> None:
        """Choose, or add, what trains: afterwards exactly that has `requires_grad`."""

    def parameter_groups(self, model: LatentDiffusion) -> list[dict[str, Any]]:
        """The optimizer's groups: name, params and lr of each; none is empty."""

    def learned(self, model: LatentDiffusion) -> dict[str, Tensor]:
        """What a checkpoint holds of the model: all that training changes, by name."""

    def restore(self, model: LatentDiffusion, learned: Mapping[str, Tensor], source: str) -> None:
        """Put `learned` back. source: names its file in messages. Raises UserError as `check_learned` does."""

    def untrained(self, model: LatentDiffusion, dtype: torch.dtype) -> Untrained:
        """The model as it is now, before any training, computing in `dtype`."""

    def export(
        self,
        model: LatentDiffusion,
        folder: Path,
        dtype: torch.dtype,
        subject: Mapping[str, Any],
        card: str | None,
    ) -> None:
        """Write what other tools read. subject: what [V] means; card: text of the model card."""


def lent(copy: LatentDiffusion, model: LatentDiffusion) -> Untrained:
    """`copy` as the untrained `model`, moved to the device that the model is on by then."""

    @contextmanager
    def base() -> Iterator[LatentDiffusion]:
        copy.move_trainable_to(model.device)
        yield copy

    return base


def check_learned(wanted: Mapping[str, Tensor], learned: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError unless `learned` has the names and shapes of `wanted`, and finite numbers in each.

    source: names the checkpoint in messages.
    """
    problem = misfit(wanted, learned)
    if problem:
        raise UserError(
            f"{source} does not fit its model: {problem}; is it whole, and the base the right one?"
        )
    broken = next((name for name, value in learned.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise UserError(f"{source} holds numbers that are not finite ({broken}): take an earlier one")


def check_rates(model: LatentDiffusion, rates: Rates) -> None:
    """Raise UserError where learning rates by name are not those of the text encoders of `model`."""
    if isinstance(rates, Mapping) and rates.keys() != model.text_encoders.keys():
        raise UserError(
            f"model.params.text_encoder_learning_rate is for {', '.join(rates)}: give one number, or one for each"
            f" text encoder of this base: {', '.join(model.text_encoders)}"
        )


def tuning_of(params: Mapping[str, Any], trust: Sequence[str] = ()) -> Tuning:
    """The tuning that `params`, the `model.params` of a run's config, describe.

    trust: packages beside this project whose tunings may be built.
    """
    node = params.get("tuning") or {"target": "ldm.methods.all_weights.AllWeights"}
    rates = {key: params.get(key) for key in ("learning_rate", "text_encoder_learning_rate")}
    check_target(node, "model.params.tuning", trust)  # it may be a stranger's
    if not issubclass(get_class(node["target"], trust), Tuning):
        raise UserError(f"config: model.params.tuning.target '{node['target']}' is no tuning")
    tuning: Tuning = instantiate_from_config(node, trust, **rates)
    return tuning
