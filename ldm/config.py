"""YAML in, objects out: load, merge, check, instantiate, save.

A config is a plain nested dict. A node with `target: package.module.Name` becomes `Name(**params)`. The
first YAML is complete; overlays and `key.sub=value` words may change its keys and nothing else, so a
misspelt key is an error.
"""

import difflib
import functools
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import UserError
from ldm.files import find, replacing

SECTIONS = ("seed", "model", "data", "lightning")
LIGHTNING_SECTIONS = ("trainer", "logger", "callbacks")

TRUSTED_TARGETS = {
    "bitsandbytes.optim.AdamW8bit",
    "bitsandbytes.optim.PagedAdamW8bit",
    "pytorch_lightning.loggers.CSVLogger",
    "pytorch_lightning.loggers.TensorBoardLogger",
    "pytorch_lightning.loggers.WandbLogger",
    "torch.optim.Adafactor",
    "torch.optim.Adam",
    "torch.optim.AdamW",
    "torch.optim.SGD",
}
"""What a config that came with a checkpoint may build, beside this project's own classes (`ldm.*`)."""


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
"""Modules that have moved: configs of older runs name them by their former place."""


def load_config(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Merge YAML files left to right, then `key.sub=value` words; the result is resolved and checked."""
    if not paths:
        raise UserError("no config given: name at least one, as in --base configs/dreambooth.yaml")
    config = load_settings(paths, overrides)
    check(config)
    return config


def load_settings(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The same for YAML files that describe no run, whatever their sections; the first has every key."""
    config: dict[str, Any] = _read_yaml(paths[0])
    for path in paths[1:]:
        merge(config, _read_yaml(path), source=str(path))
    return _with_words(config, overrides)


def override(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`config` with `key.sub=value` words merged in, interpolations resolved, and every key checked."""
    config = _with_words(config, overrides)
    check(config)
    return config


def _with_words(config: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for word in overrides:
        merge(config, _parse_override(word), source=word)
    try:
        return OmegaConf.to_container(OmegaConf.create(config), resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {_first_line(error)}") from error


def merge(config: dict[str, Any], overlay: Mapping[str, Any], source: str, path: str = "") -> None:
    """Write `overlay` over `config` in place. A new `target` replaces its `params`; new keys are refused.

    Keys of `params` may be new, since `check` holds them against the target's signature.
    """
    if "target" in overlay and overlay["target"] != config.get("target"):
        config.clear()
        config.update(overlay)
        return
    for key, value in overlay.items():
        where = f"{path}.{key}" if path else str(key)
        old = config.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            merge(old, value, source, where)
        elif key in config or _is_open(path, config, key):
            config[key] = value
        else:
            raise UserError(f"{source}: unknown key '{where}'{_suggest(key, config)}")


def _is_open(path: str, node: Mapping[str, Any], key: str) -> bool:
    """Whether `key` may be new in `node` at `path`: `check` holds such keys against a signature."""
    return (
        path.endswith("params")
        or path in ("lightning.callbacks", "lightning.trainer")
        or (key == "params" and "target" in node)
    )


def check(config: Mapping[str, Any]) -> None:
    """Raise UserError for a key that neither a section nor its target's signature knows."""
    import pytorch_lightning as pl

    _check_keys(config, SECTIONS, "")
    for section in ("model", "data", "lightning"):
        if not isinstance(config.get(section), Mapping):
            raise UserError(f"config: the section '{section}' is missing; start from configs/dreambooth.yaml")
    _check_keys(config["lightning"], LIGHTNING_SECTIONS, "lightning")
    _check_keys(config["lightning"]["trainer"], _parameters(pl.Trainer)[0], "lightning.trainer")
    _check_targets(config, "")


def get_class(target: str, trusted_only: bool = False) -> Any:
    """The class or function that `target` ("package.module.Name") names.

    trusted_only: refuse, before any import, what is neither this project's nor in TRUSTED_TARGETS, and of the
    project's what is no class of its own; for configs that came with a checkpoint.
    """
    untrusted = UserError(
        f"config: target '{target}' is not on the list of trusted targets in ldm/config.py;"
        " if you trust it, add it there"
    )
    if trusted_only and not target.startswith("ldm.") and target not in TRUSTED_TARGETS:
        raise untrusted
    former = next((old for old in MOVED if target.startswith(old)), None)
    if former:
        target = MOVED[former] + target.removeprefix(former)
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"config: cannot import target '{target}': {error}") from error
    own_class = isinstance(found, type) and found.__module__.startswith("ldm.")
    if trusted_only and target not in TRUSTED_TARGETS and not own_class:
        raise untrusted  # ldm.x.subprocess is a module that ldm.x imports, and a function might delete files
    return found


def instantiate_from_config(config: Mapping[str, Any], trusted_only: bool = False, **extra: Any) -> Any:
    """`target(**params, **extra)`.

    A node inside `params` arrives as `functools.partial(target, **params)`: it still needs an argument that
    only the outer one has, as an optimizer needs the parameters it optimizes.
    """
    params = {key: _partial(value, trusted_only) for key, value in (config.get("params") or {}).items()}
    return get_class(config["target"], trusted_only)(**params, **extra)


def _partial(value: Any, trusted_only: bool) -> Any:
    if not (isinstance(value, Mapping) and "target" in value):
        return value
    return functools.partial(get_class(value["target"], trusted_only), **(value.get("params") or {}))


def check_trusted(config: Any) -> None:
    """Raise UserError where any `target` in `config` is not a trusted one."""
    if isinstance(config, Mapping):
        if isinstance(config.get("target"), str):
            get_class(config["target"], trusted_only=True)
        for value in config.values():
            check_trusted(value)


def read_plain(path: str | Path) -> dict[str, Any]:
    """A config that a run has saved, which may come from a stranger.

    `save_config` resolves every reference, so one that is there (`${oc.env:SECRET}`, or YAML aliases that
    unfold to more than the memory holds) is a UserError.
    """
    path = Path(path)
    try:
        aliases = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(path.read_text()))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config {path}: {_first_line(error)}") from error
    if aliases:
        raise UserError(
            f"config {path}: YAML aliases are refused in a run's own config; write their values out"
        )
    config = _read_yaml(path)
    _refuse_references(config, path)
    return config


def _refuse_references(node: Any, path: Path) -> None:
    if isinstance(node, str) and "${" in node:
        raise UserError(f"config {path}: '{node}' is refused in a run's own config; write its value out")
    for item in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _refuse_references(item, path)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def save_config(config: Mapping[str, Any], path: str | Path) -> None:
    """Write `config` as YAML, under its final name only when complete."""
    with replacing(Path(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yaml.dump(dict(config), file, Dumper=_NoAliases, sort_keys=False, allow_unicode=True)


def _read_yaml(path: str | Path) -> dict[str, Any]:
    path = find(path)
    if not path.is_file():
        raise UserError(f"config {path}: no such file; the recipes are in configs/")
    try:
        # OmegaConf reads 1e-6 as a number where YAML 1.1 reads text.
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config {path}: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path}: expected keys and values at the top level")
    return config


def _parse_override(word: str) -> dict[str, Any]:
    if "=" not in word or word.startswith("-"):
        raise UserError(f"unknown argument '{word}': overrides are written key.sub=value; see --help")
    try:
        return OmegaConf.to_container(OmegaConf.from_dotlist([word]), resolve=False)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"override '{word}': {_first_line(error)}") from error


def _check_targets(node: Any, path: str) -> None:
    if not isinstance(node, Mapping):
        return
    if "target" in node:
        _check_keys(node, ("target", "params"), path)
        known, open_ended = _parameters(get_class(node["target"]))
        if not open_ended:
            _check_keys(node.get("params") or {}, known, f"{path}.params")
    for key, value in node.items():
        _check_targets(value, f"{path}.{key}" if path else str(key))


def _check_keys(node: Mapping[str, Any], known: Sequence[str], path: str) -> None:
    for key in node:
        if key not in known:
            where = f"{path}.{key}" if path else str(key)
            raise UserError(f"config: unknown key '{where}'{_suggest(key, known)}")


def _parameters(target: Any) -> tuple[list[str], bool]:
    """Names that `target` can be called with, and whether it takes any other keyword too."""
    parameters = inspect.signature(target).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return names, any(p.kind == p.VAR_KEYWORD for p in parameters)


def _suggest(key: Any, known: Sequence[str] | Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(str(key), [str(name) for name in known], n=1)
    return f"; did you mean '{close[0]}'?" if close else f"; known here: {', '.join(map(str, known))}"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2])
