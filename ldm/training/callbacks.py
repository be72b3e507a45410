"""The callbacks of a run, and what they are handed of each other."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pytorch_lightning import Callback

from ldm.targets import get_class, instantiate_from_config, parameters


def build_callbacks(
    configs: Mapping[str, Any], trust: Sequence[str] = (), given: Sequence[Callback] = ()
) -> list[Callback]:
    """`given`, then the callbacks of a config's `lightning.callbacks` in its order; null leaves one out.

    One callback uses another by having a parameter annotated with its class, as in `record: LossRecord | None`.
    It is handed the one built before it. Configs never set such a parameter.
    """
    built = list(given)
    for config in configs.values():
        if config:
            handed = _handed(get_class(config["target"], trust), built)
            built.append(instantiate_from_config(config, trust, **handed))
    return built


def _handed(target: Any, built: Sequence[Callback]) -> dict[str, Callback]:
    """Of `built`, those whose class a parameter of `target` names."""
    kinds = {name: (hint, *get_args(hint)) for name, hint in parameters(target).items()}
    return {name: other for name, kind in kinds.items() for other in built if type(other) in kind}
