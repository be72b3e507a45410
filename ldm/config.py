"""YAML in, a checked config out: load, merge, resolve, check, save.

A config is a plain nested dict. A node with `target: package.module.Name` becomes `Name(**params)`, see
`ldm/targets.py`; `ldm/schema.py` says what may stand in it. The first YAML is complete; overlays and
`key.sub=value` words may change its keys and nothing else, so a misspelt key is an error.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import UserError
from ldm.files import find, replacing
from ldm.schema import Scalar, check, check_as, plain, read_scalars, read_scalars_as, suggestion
from ldm.values import Config

MAX_DEPTH = 50
"""Levels of keys and lists in a config; a recipe has 6."""


def load_config(
    paths: Sequence[str | Path], overrides: Sequence[str] = (), trust: Sequence[str] = ()
) -> Config:
    """Merge YAML files left to right, then `key.sub=value` words; the result is resolved and checked.

    trust: packages besides this project whose classes a `target` may name (`--trust`).
    """
    if not paths:
        raise UserError("no config given: name at least one, as in --base configs/dreambooth.yaml")
    return override(_merged(paths), overrides, trust)


def merged(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """The same, neither resolved nor checked, its numbers as `Scalar`s: what is wrong with files and words alone."""
    config = _merged(paths)
    _merge_words(config, overrides)
    return config


def load_settings(paths: Sequence[str | Path], kind: type, overrides: Sequence[str] = ()) -> Config:
    """The same for YAML files that describe no run; the first has every key. kind: a dataclass of the keys."""
    config = _merged(paths)
    _merge_words(config, overrides)
    read_scalars_as(config, kind)
    config = _resolved(config)
    check_as(config, kind)
    return config


def override(config: Config, overrides: Sequence[str], trust: Sequence[str] = ()) -> Config:
    """`config` with `key.sub=value` words merged in, interpolations resolved, and every key and value checked."""
    _merge_words(config, overrides)
    read_scalars(config, trust)
    config = _resolved(config)
    check(config, trust)
    return config


def _merged(paths: Sequence[str | Path]) -> Config:
    config = _read_yaml(paths[0])
    for path in paths[1:]:
        merge(config, _read_yaml(path), source=str(path))
    return config


def _merge_words(config: Config, overrides: Sequence[str]) -> None:
    for word in overrides:
        merge(config, _parse_override(word), source=word)


def _resolved(config: Config) -> Config:
    try:
        return cast(Config, OmegaConf.to_container(OmegaConf.create(config), resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"config: {_first_line(error)}") from error


def merge(config: Config, overlay: Mapping[str, object], source: str, path: str = "") -> None:
    """Write `overlay` over `config` in place. A new `target` replaces its `params`; new keys are refused.

    Keys of `params` may be new, since `check` compares them with the target's signature.
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
        elif isinstance(old, list) and isinstance(value, Mapping):
            _merge_items(old, value, source, where)
        elif key in config or _is_open(path, config, key):
            config[key] = value
        else:
            raise UserError(f"{source}: unknown key '{where}'{suggestion(key, config)}")


def _merge_items(items: list[object], overlay: Mapping[str, object], source: str, path: str) -> None:
    """Write `overlay`, whose keys are places in a list of keys and values, over `items`."""
    for place, value in overlay.items():
        item = items[int(place)] if place.isdecimal() and int(place) < len(items) else None
        if not (isinstance(item, dict) and isinstance(value, Mapping)):
            raise UserError(f"{source}: '{path}.{place}' is no item of {path}, which has {len(items)}")
        item.update(value)


def _is_open(path: str, node: Mapping[str, object], key: str) -> bool:
    """Whether `key` may be new in `node` at `path`: `check` compares such keys with a signature."""
    return (
        path.endswith("params")
        or path in ("lightning.callbacks", "lightning.trainer")
        or (key == "params" and "target" in node)
    )


def read_plain(path: str | Path) -> Config:
    """A config that a run has saved, which may come from a stranger.

    `save_config` resolves every reference, so any that is left (`${oc.env:SECRET}`, or YAML aliases that
    unfold to more than fits into memory) is a UserError.
    """
    config: Config = plain(_read_yaml(path, aliases=False))
    _refuse_references(config, Path(path))
    return config


def _refuse_references(node: object, path: Path) -> None:
    if isinstance(node, str) and "${" in node:
        raise UserError(f"config {path}: '{node}' is refused in a run's own config; write its value out")
    for item in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _refuse_references(item, path)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


# OmegaConf reads 1e-6 as a number and YAML 1.1 as text, so such a text needs quotes.
_NoAliases.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def save_config(config: Mapping[str, object], path: str | Path) -> None:
    """Write `config` as YAML, under its final name only when complete."""
    with replacing(Path(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yaml.dump(dict(config), file, Dumper=_NoAliases, sort_keys=False, allow_unicode=True)


def _read_yaml(path: str | Path, aliases: bool = True) -> Config:
    """The keys and values of a YAML file; numbers are `Scalar`s, which keep their text. aliases: allow YAML's."""
    path = find(path)
    if not path.is_file():
        raise UserError(f"config {path}: no such file; the recipes are in configs/")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_hostile(text, aliases)
        # OmegaConf reads 1e-6 as a number where YAML 1.1 reads text.
        config = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
        config = _with_texts(config, yaml.compose(text, yaml.SafeLoader))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config {path}: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path}: expected keys and values at the top level")
    return cast(Config, config)


def _refuse_hostile(text: str, aliases: bool = True) -> None:
    """Raise YAMLError for YAML nested so deeply that libyaml would overflow the stack, and for unwanted aliases."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise yaml.YAMLError("YAML aliases are refused in a run's own config; write their values out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")


def _parse_override(word: str) -> Config:
    """`key.sub=value` as nested keys; a number is a `Scalar`, and anything that is not YAML is text."""
    keys, equals, text = word.partition("=")
    if not equals or word.startswith("-"):
        raise UserError(f"unknown argument '{word}': overrides are written key.sub=value; see --help")
    value: object = text
    # What is no YAML is text, such as "a photo: of [V]".
    with contextlib.suppress(OmegaConfBaseException, yaml.YAMLError):
        _refuse_hostile(text)
        read = cast(Config, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))
        value = _with_texts(read["value"], yaml.compose(text, yaml.SafeLoader))
    for key in reversed(keys.split(".")):
        value = {key: value}
    return cast(Config, value)


def _with_texts(value: object, node: yaml.Node | None) -> object:
    """`value`, with its text as written beside each number and truth value; node: the YAML it was read from."""
    if isinstance(value, dict) and isinstance(node, yaml.MappingNode):
        nodes = {key.value: child for key, child in node.value}
        return {str(key): _with_texts(item, nodes.get(str(key))) for key, item in value.items()}
    if isinstance(value, list) and isinstance(node, yaml.SequenceNode):
        return [_with_texts(item, child) for item, child in zip(value, node.value, strict=True)]
    if isinstance(value, int | float) and isinstance(node, yaml.ScalarNode):
        return Scalar(node.value, value)
    return value


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[:2])
