"""Finds and builds the classes that a config names, if a config may build them."""

import contextlib
import functools
import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeGuard, get_args, get_origin

from ldm.errors import UserError
from ldm.values import Config

TRUSTED_MODULES = ("bitsandbytes.optim", "prodigyopt", "schedulefree", "torch.optim")
"""Library modules whose classes any config may build: optimizers."""

TRUSTED_TARGETS = (
    "peft.LoHaConfig",
    "peft.LoKrConfig",
    "peft.LoraConfig",
    "peft.OFTConfig",
    "pytorch_lightning.loggers.CSVLogger",
    "pytorch_lightning.loggers.TensorBoardLogger",
    "pytorch_lightning.loggers.WandbLogger",
)
"""Library classes that any config may build, with the keywords that `ldm/foreign.py` allows."""

MOVED = {
    "ldm.data.world.": "ldm.world.drawing.",
    "ldm.data.world_pictures.": "ldm.world.pictures.",
    "ldm.data.world_views.": "ldm.world.views.",
    "ldm.models.autoencoder.": "ldm.world.autoencoder.",
    "ldm.models.contrastive.": "ldm.world.contrastive.",
    "ldm.models.dreambooth.": "ldm.methods.dreambooth.",
    "ldm.models.self_distillation.": "ldm.world.self_distillation.",
    "ldm.models.text_to_image.": "ldm.world.text_to_image.",
}
"""Modules that have moved, by the former names that configs of older runs use."""


def get_class(target: str, trust: Sequence[str] = ()) -> Any:
    """The class that `target` ("package.module.Name") names.

    A config may come from a stranger, and its targets are called. So a target must be a class of this project, one
    of the library classes above, or in a package that the user trusts; others are refused before the import.
    trust: these packages or modules, from `--trust`; their functions are allowed too.
    """
    former = next((old for old in MOVED if target.startswith(old)), None)
    if former:
        target = MOVED[former] + target.removeprefix(former)
    module_name, _, name = target.rpartition(".")
    trusted = any(target == word or target.startswith(word + ".") for word in trust)
    known = target.startswith("ldm.") or target in TRUSTED_TARGETS or module_name in TRUSTED_MODULES
    refused = UserError(
        f"config: target '{target}' is not a class of this project or of a known library, and could run any"
        f" code; if you trust it, add --trust {target.split('.')[0]}"
    )
    if not (trusted or known):
        raise refused
    try:
        found = getattr(importlib.import_module(module_name), name)
    except ModuleNotFoundError as error:
        package = target.split(".")[0]
        if error.name != package or not known:
            raise UserError(f"config: cannot import target '{target}': {error}") from error
        raise UserError(f"config: target '{target}' needs a package: pip install {package}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"config: cannot import target '{target}': {error}") from error
    # Only classes: ldm.x.subprocess is a module that ldm.x imports, and a project function might delete files.
    own_class = isinstance(found, type) and found.__module__.startswith(target.split(".")[0] + ".")
    if not (trusted or own_class):
        raise refused
    return found


def instantiate_from_config(config: Mapping[str, Any], trust: Sequence[str] = (), **extra: Any) -> Any:
    """`target(**params, **extra)` of a checked config.

    A node inside `params` is passed as `functools.partial(target, **params)`: it still needs an argument that
    only the outer object has, as an optimizer needs parameters. A mapping for a parameter whose type is a dataclass
    is passed as that dataclass.
    """
    target = get_class(config["target"], trust)
    return target(**_keywords(target, config, trust), **extra)


def _keywords(target: Any, config: Mapping[str, Any], trust: Sequence[str]) -> dict[str, Any]:
    types = parameters(target)
    params = config.get("params") or {}
    return {key: _built(value, types.get(key, Any), trust) for key, value in params.items()}


def completed(build: Callable[..., Any], where: str, **arguments: object) -> Any:
    """`build(**arguments)` of a node inside a config's `params`. where: its path.

    Raises UserError if its own `params` lack an argument.
    """
    try:
        inspect.signature(build).bind(**arguments)
    except TypeError as error:
        raise UserError(f"config {where}.params: {error}") from error
    return build(**arguments)


def item_of(annotation: object) -> type | None:
    """The dataclass of the items of a list of this type, as in `Sequence[Settings] | None`."""
    parts = [annotation, *get_args(annotation)]
    for member in [*parts, *(inner for part in parts for inner in get_args(part))]:
        is_list = isinstance(get_origin(member), type) and issubclass(get_origin(member), Sequence)
        items = [item for item in get_args(member) if isinstance(item, type) and is_dataclass(item)]
        if is_list and items:
            return items[0]
    return None


def _built(value: object, annotation: object, trust: Sequence[str]) -> Any:
    if isinstance(value, list) and (item := item_of(annotation)):
        return [item(**one) for one in value]
    if not isinstance(value, Mapping):
        return value
    if is_target(value):
        target = get_class(value["target"], trust)
        return functools.partial(target, **_keywords(target, value, trust))
    return annotation(**value) if isinstance(annotation, type) and is_dataclass(annotation) else value


def is_target(value: object) -> TypeGuard[Config]:
    """Whether a config value is a node that names a class."""
    return isinstance(value, Mapping) and "target" in value


def parameters(target: Callable[..., object]) -> dict[str, object]:
    """Annotations of the keywords of `target`; `Any` if missing."""
    return {name: parameter.annotation for name, parameter in signature(target).items()}


def signature(target: Callable[..., object]) -> dict[str, inspect.Parameter]:
    """The parameters of `target` by name, with annotations evaluated if possible.

    `*args` and `**kwargs` are left out; see `takes_any`.
    """
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: parameter if parameter.annotation is not parameter.empty else parameter.replace(annotation=Any)
        for name, parameter in _signature(target).parameters.items()
        if parameter.kind in keywords
    }


def takes_any(target: Callable[..., object]) -> bool:
    """Whether `target` takes keywords beyond its signature."""
    return any(p.kind is p.VAR_KEYWORD for p in _signature(target).parameters.values())


@functools.cache
def _signature(target: Callable[..., object]) -> inspect.Signature:
    for evaluated in (True, False):  # names in quoted annotations may not exist at run time
        with contextlib.suppress(NameError, SyntaxError, TypeError, ValueError):
            return inspect.signature(target, eval_str=evaluated)
    return inspect.signature(lambda **keywords: None)  # built-in classes have no signature
