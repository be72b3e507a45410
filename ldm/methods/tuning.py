"""The interface of a tuning: which weights train, what a checkpoint holds, how to recover the untrained model."""

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
"""`with untrained() as base:` gives the model before training. Dropping `untrained` frees its memory."""


@runtime_checkable
class Tuning(Protocol):
    """One way to fine-tune a model. A config names it in `model.params.tuning`, with `target` and `params`."""

    def attach(self, model: LatentDiffusion) -> None:
        """Choose or add the trained parameters; afterwards only they have `requires_grad`."""

    def parameter_groups(self, model: LatentDiffusion) -> list[dict[str, Any]]:
        """The optimizer's groups, none empty, each with name, params and lr."""

    def learned(self, model: LatentDiffusion) -> dict[str, Tensor]:
        """The model's tensors for a checkpoint: everything that training changes, by name."""

    def restore(self, model: LatentDiffusion, learned: Mapping[str, Tensor], source: str) -> None:
        """Load `learned` into the model. source: its file, for messages. Raises UserError like `check_learned`."""

    def untrained(self, model: LatentDiffusion, dtype: torch.dtype) -> Untrained:
        """The current, untrained model, computing in `dtype`."""

    def export(
        self,
        model: LatentDiffusion,
        folder: Path,
        dtype: torch.dtype,
        subject: Mapping[str, object],
        card: str | None,
    ) -> None:
        """Write the model for other tools. subject: what [V] means; card: text of the model card."""


def untrained_copy(copy: LatentDiffusion, model: LatentDiffusion) -> Untrained:
    """`copy` as the untrained `model`, moved to the device of the model when used."""

    @contextmanager
    def base() -> Iterator[LatentDiffusion]:
        copy.move_trainable_to(model.device)
        yield copy

    return base


def check_learned(wanted: Mapping[str, Tensor], learned: Mapping[str, Tensor], source: str) -> None:
    """Raise UserError unless `learned` has the names and shapes of `wanted`, and only finite values.

    source: the checkpoint, for messages.
    """
    problem = misfit(wanted, learned)
    if problem:
        raise UserError(
            f"{source} does not fit its model: {problem}; is it complete, and the base the right one?"
        )
    broken = next((name for name, value in learned.items() if not torch.isfinite(value).all()), None)
    if broken:
        raise UserError(f"{source} has values that are not finite ({broken}): use an earlier one")


def check_rates(model: LatentDiffusion, rates: Rates) -> None:
    """Raise UserError unless learning rates by name match the text encoders of `model`."""
    if isinstance(rates, Mapping) and rates.keys() != model.text_encoders.keys():
        raise UserError(
            f"model.params.text_encoder_learning_rate is for {', '.join(rates)}: give one number, or one for each"
            f" text encoder of this base ({', '.join(model.text_encoders)})"
        )


def tuning_of(params: Mapping[str, Any], trust: Sequence[str] = ()) -> Tuning:
    """The tuning in `params`, the `model.params` of a run's config.

    trust: other packages whose tunings may be built.
    """
    node = params.get("tuning") or {"target": "ldm.methods.all_weights.AllWeights"}
    rates = {key: params.get(key) for key in ("learning_rate", "text_encoder_learning_rate")}
    check_target(node, "model.params.tuning", trust)  # it may come from a stranger
    if not issubclass(get_class(node["target"], trust), Tuning):
        raise UserError(f"config: model.params.tuning.target '{node['target']}' is not a tuning")
    tuning: Tuning = instantiate_from_config(node, trust, **rates)
    return tuning
