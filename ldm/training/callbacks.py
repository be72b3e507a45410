"""Builds a run's callbacks and passes earlier ones to those that need them."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pytorch_lightning import Callback

from ldm.targets import get_class, instantiate_from_config, parameters


def build_callbacks(
    configs: Mapping[str, Any], trust: Sequence[str] = (), given: Sequence[Callback] = ()
) -> list[Callback]:
    """`given`, then the callbacks of a config's `lightning.callbacks`, in order; null leaves one out.

    A callback gets another, built before it, through a parameter annotated with that one's class, as in
    `record: LossRecord | None`. Configs never set such a parameter.
    """
    built = list(given)
    for config in configs.values():
        if config:
            needed = _needed(get_class(config["target"], trust), built)
            built.append(instantiate_from_config(config, trust, **needed))
    return built


def _needed(target: Any, built: Sequence[Callback]) -> dict[str, Callback]:
    """The callbacks of `built` whose class annotates a parameter of `target`, by parameter name."""
    kinds = {name: (hint, *get_args(hint)) for name, hint in parameters(target).items()}
    return {name: other for name, kind in kinds.items() for other in built if type(other) in kind}
