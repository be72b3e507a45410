"""YAML in, a checked config out: load, merge, resolve, check, save.

A config is a plain nested dict. A node with `target: package.module.Name` becomes `Name(**params)` (`ldm/targets.py`);
`ldm/schema.py` says which keys and values are allowed. The first YAML is complete; overlays and `key.sub=value`
overrides can only change its keys, so a misspelt key is an error.
"""

import contextlib
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ldm.errors import UserError
from ldm.files import find, replacing
from ldm.schema import SECTIONS, Scalar, check, check_as, plain, read_scalars, read_scalars_as, suggestion
from ldm.values import Config

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML was built with it: 30 times as fast."""

MAX_DEPTH = 50
"""Maximum nesting of a config; recipes have 6 levels."""


def load_config(
    paths: Sequence[str | Path], overrides: Sequence[str] = (), trust: Sequence[str] = ()
) -> Config:
    """Merge YAML files left to right, then `key.sub=value` overrides; the result is resolved and checked.

    trust: packages besides this project whose classes a `target` may name (`--trust`).
    """
    if not paths:
        raise UserError("no config given: name at least one, as in --base configs/dreambooth.yaml")
    return override(_merged(paths), overrides, trust)


def merged(paths: Sequence[str | Path], overrides: Sequence[str] = ()) -> Config:
    """Like `load_config`, but not resolved or checked, with numbers as `Scalar`s."""
    config = _merged(paths)
    _merge_overrides(config, overrides)
    return config


def load_settings(paths: Sequence[str | Path], kind: type, overrides: Sequence[str] = ()) -> Config:
    """Like `load_config` for settings that are not a run's; the first file has every key. kind: their dataclass."""
    config = _merged(paths)
    _merge_overrides(config, overrides)
    read_scalars_as(config, kind)
    config = _resolved(config)
    check_as(config, kind)
    return config


def override(config: Config, overrides: Sequence[str], trust: Sequence[str] = ()) -> Config:
    """`config` with `key.sub=value` overrides merged, interpolations resolved, and every key and value checked."""
    _merge_overrides(config, overrides)
    read_scalars(config, trust)
    config = _resolved(config)
    check(config, trust)
    return config


def _merged(paths: Sequence[str | Path]) -> Config:
    config = _read_yaml(paths[0])
    for path in paths[1:]:
        merge(config, _read_yaml(path), source=str(path))
    return config


def _merge_overrides(config: Config, overrides: Sequence[str]) -> None:
    for word in overrides:
        merge(config, _parse_override(word), source=word)


def _resolved(config: Config) -> Config:
    try:
        return cast(Config, OmegaConf.to_container(OmegaConf.create(config), resolve=True))
    except OmegaConfBaseException as error:
        raise UserError(f"config: {_first_line(error)}") from error


def merge(config: Config, overlay: Mapping[str, object], source: str, path: str = "") -> None:
    """Merge `overlay` into `config` in place. A new `target` replaces its `params`; new keys are refused.

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
            is_section = not path and key in SECTIONS
            hint = "; put the complete recipe first" if is_section else suggestion(key, config)
            raise UserError(f"{source}: unknown key '{where}'{hint}")


def _merge_items(items: list[object], overlay: Mapping[str, object], source: str, path: str) -> None:
    """Merge `overlay`, whose keys are indices of a list of mappings, into `items`."""
    for place, value in overlay.items():
        item = items[int(place)] if place.isdecimal() and int(place) < len(items) else None
        if not (isinstance(item, dict) and isinstance(value, Mapping)):
            raise UserError(f"{source}: '{path}.{place}' is not an item of {path}, which has {len(items)}")
        item.update(value)


def _is_open(path: str, node: Mapping[str, object], key: str) -> bool:
    """Whether `key` may be new in `node` at `path`, because `check` compares it with a signature."""
    return (
        path.endswith("params")
        or path in ("lightning.callbacks", "lightning.trainer")
        or (key == "params" and "target" in node)
    )


def flat(config: Mapping[str, object], prefix: str = "") -> Config:
    """Nested keys joined by dots; lists are kept whole, except lists of mappings."""
    result: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(place): item for place, item in enumerate(value)}
        if isinstance(value, Mapping):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def read_plain(path: str | Path) -> Config:
    """A config saved by a run, which may come from a stranger.

    `save_config` resolves all references, so a remaining one (`${oc.env:SECRET}`, or YAML aliases, which can expand
    to more than fits into memory) raises UserError.
    """
    config: Config = plain(_read_yaml(path, aliases=False))
    _refuse_references(config, Path(path))
    return config


def _refuse_references(node: object, path: Path) -> None:
    if isinstance(node, str) and "${" in node:
        raise UserError(
            f"config {path}: '{node}' is not allowed in a run's own config; replace it by its value"
        )
    for item in node.values() if isinstance(node, Mapping) else node if isinstance(node, list) else ():
        _refuse_references(item, path)


class _NoAliases(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


# OmegaConf reads 1e-6 as a number but YAML 1.1 as text, so text like it needs quotes.
_NoAliases.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def save_config(config: Mapping[str, object], path: str | Path) -> None:
    """Write `config` as YAML, atomically."""
    with replacing(Path(path)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        yaml.dump(dict(config), file, Dumper=_NoAliases, sort_keys=False, allow_unicode=True)


def _read_yaml(path: str | Path, aliases: bool = True) -> Config:
    """The content of a YAML file; numbers are `Scalar`s, which keep their text. aliases: allow YAML aliases."""
    path = find(path)
    if not path.is_file():
        raise UserError(f"config {path}: no such file; the recipes are in configs/")
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_hostile(text, aliases)
        # OmegaConf reads 1e-6 as a number where YAML 1.1 reads text.
        config = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
        config = _with_texts(config, yaml.compose(text, _LOADER))
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config {path}: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise UserError(f"config {path}: expected keys and values at the top level")
    return cast(Config, config)


def _refuse_hostile(text: str, aliases: bool = True) -> None:
    """Raise YAMLError for nesting so deep that libyaml would overflow the stack, and for aliases unless allowed."""
    depth = 0
    for event in yaml.parse(text, _LOADER):  # one by one, so a refusal comes before libyaml goes deeper
        if isinstance(event, yaml.AliasEvent) and not aliases:
            raise yaml.YAMLError(
                "YAML aliases are not allowed in a run's own config; replace them by their values"
            )
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"nested more than {MAX_DEPTH} levels deep")


def _parse_override(word: str) -> Config:
    """`key.sub=value` as nested keys; a number becomes a `Scalar`, and anything that is not YAML is text."""
    keys, equals, text = word.partition("=")
    if not equals or word.startswith("-"):
        raise UserError(f"unknown argument '{word}': an override has the form key.sub=value; see --help")
    value: object = text
    # Invalid YAML is text, such as "a photo: of [V]".
    with contextlib.suppress(OmegaConfBaseException, yaml.YAMLError):
        _refuse_hostile(text)
        read = cast(Config, OmegaConf.to_container(OmegaConf.from_dotlist([f"value={text}"])))
        value = _with_texts(read["value"], yaml.compose(text, yaml.SafeLoader))
    for key in reversed(keys.split(".")):
        value = {key: value}
    return cast(Config, value)


def _with_texts(value: object, node: yaml.Node | None) -> object:
    """`value` with numbers and booleans as `Scalar`s; node: the YAML it was read from."""
    if isinstance(value, dict) and isinstance(node, yaml.MappingNode):
        nodes = {key.value: child for key, child in node.value}
        return {str(key): _with_texts(item, nodes.get(str(key))) for key, item in value.items()}
    if isinstance(value, list) and isinstance(node, yaml.SequenceNode):
        return [_with_texts(item, child) for item, child in zip(value, node.value, strict=True)]
    if isinstance(value, int | float) and isinstance(node, yaml.ScalarNode):
        return Scalar(node.value, value)
    return value


def _first_line(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem:
        mark = error.problem_mark or error.context_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})" if mark else error.problem
    return " ".join(str(error).split("\n")[:2])
