"""Checks a run's config: its sections, and for each `target` the keys, types and ranges of its signature."""

import difflib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, get_args, get_origin

from ldm.errors import UserError
from ldm.foreign import SIGNATURES, TRAINER_SETTINGS, trainer
from ldm.targets import get_class, is_target, item_of, parameters, signature, takes_any
from ldm.values import (
    Config,
    KeywordsOf,
    Seed,
    allowed,
    is_provided,
    is_unaffecting,
    problem_with,
    takes_text,
)

SECTIONS = ("seed", "model", "data", "lightning")
LIGHTNING_SECTIONS = ("trainer", "logger", "callbacks")
GIVEN_BY_RUN = ("callbacks", "default_root_dir", "plugins", *TRAINER_SETTINGS)
"""Keywords of Lightning's Trainer that a run sets itself."""


@dataclass(frozen=True)
class Scalar:
    """A number or boolean of a YAML file or override, with its text as written."""

    text: str
    value: object


@dataclass(frozen=True)
class Setting:
    """One value of a config, with its path and type."""

    path: str
    node: Config
    key: str
    annotation: object

    @property
    def value(self) -> Any:
        return self.node[self.key]


def read_scalars(config: Config, trust: Sequence[str]) -> None:
    """Replace `Scalar`s by values, or by their text as written if the setting is text, as in `class_word: 911`."""
    _read(settings(config, trust))


def read_scalars_as(config: Config, kind: type) -> None:
    """Like `read_scalars` for settings that are not a run's; kind: their dataclass."""
    _read(_of_call(config, kind, "", ()))


def _read(found: Iterable[Setting]) -> None:
    for setting in found:
        setting.node[setting.key] = plain(setting.value, takes_text(setting.annotation))


def plain(value: object, as_text: bool = False) -> Any:
    """`value` with `Scalar`s replaced by their values, or by their texts."""
    if isinstance(value, Scalar):
        return value.text if as_text else value.value
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item, as_text) for item in value] if isinstance(value, list) else value


def check(config: Config, trust: Sequence[str] = ()) -> None:
    """Raise UserError for a wrong key, value or class, before anything is built."""
    _check(settings(config, trust))
    _check_optimizers(config["model"], "model", trust)


def check_target(node: object, path: str, trust: Sequence[str] = ()) -> None:
    """`check` for one node with a `target`; messages call it `path`. Some of its keywords may be given later."""
    _check(_of_target(node, path, trust, complete=False))


def check_as(config: Config, kind: type) -> None:
    """`check` for settings that are not a run's; kind: their dataclass."""
    _check(_of_call(config, kind, "", ()))


def _check(found: Iterable[Setting]) -> None:
    for setting in found:
        problem = problem_with(setting.value, setting.annotation) or _out_of_range(setting.value)
        if problem:
            raise UserError(f"config: {setting.path} {problem}")


def unaffecting(config: Config, trust: Sequence[str] = ()) -> set[str]:
    """Paths of the settings whose signatures mark them as not changing the loss record."""
    return {setting.path for setting in settings(config, trust) if is_unaffecting(setting.annotation)}


def settings(config: Config, trust: Sequence[str] = ()) -> Iterator[Setting]:
    """All settings of a run's config. Raises UserError for unknown or missing keys and untrusted targets."""
    import pytorch_lightning as pl

    _check_keys(config, SECTIONS, "")
    for section in ("model", "data", "lightning"):
        if not isinstance(config.get(section), Mapping):
            raise UserError(f"config: the section '{section}' is missing; start from configs/dreambooth.yaml")
    if "seed" in config:
        yield Setting("seed", config, "seed", Seed)
    yield from _of_target(config["model"], "model", trust, pl.LightningModule)
    yield from _of_target(config["data"], "data", trust, pl.LightningDataModule)

    lightning = config["lightning"]
    _check_keys(lightning, LIGHTNING_SECTIONS, "lightning")
    for section in ("trainer", "callbacks"):
        if not isinstance(lightning.get(section), Mapping):
            raise UserError(
                f"config: the section 'lightning.{section}' is missing; see configs/dreambooth.yaml"
            )
    for key in lightning["trainer"]:
        if key in TRAINER_SETTINGS:
            raise UserError(
                f"config: 'lightning.trainer.{key}' is fixed here to {TRAINER_SETTINGS[key]}: leave it out"
            )
    others = {key: hint for key, hint in parameters(pl.Trainer).items() if key not in GIVEN_BY_RUN}
    yield from _of_call(lightning["trainer"], trainer, "lightning.trainer", trust, others)
    if lightning.get("logger") is not None:
        yield from _of_target(lightning["logger"], "lightning.logger", trust, pl.loggers.Logger)
    for name, node in lightning["callbacks"].items():
        if node is not None:
            yield from _of_target(node, f"lightning.callbacks.{name}", trust, pl.Callback)


def _of_target(
    node: object, path: str, trust: Sequence[str], kind: type = object, complete: bool = True
) -> Iterator[Setting]:
    """The settings of a node whose `target` must be a `kind`. complete: as in `_of_call`."""
    node = _target_node(node, path)
    found = get_class(node["target"], trust)
    if not _is_kind(found, kind):
        raise UserError(f"config: {path}.target '{node['target']}' is not a kind of {kind.__name__}")
    params = {} if node.get("params") is None else node["params"]
    if not isinstance(params, dict):
        raise UserError(f"config: {path}.params is {plain(params)!r}: it must be keys and values")
    call = SIGNATURES.get(node["target"])
    yield from _of_call(params, call or found, f"{path}.params", trust, complete=complete and call is None)


def _is_kind(found: object, kind: type) -> bool:
    """Whether `found`, named by a target, is a class of `kind`; a function counts, since it may return anything."""
    try:
        return not isinstance(found, type) or issubclass(found, kind)
    except TypeError:  # a protocol that does not support issubclass
        return True


def _target_node(node: object, path: str) -> Config:
    """`node`, if it names a class. Raises UserError otherwise."""
    if not is_target(node):
        raise UserError(
            f"config: {path} is {plain(node)!r}: it must have a target"
            + (
                "; the first of --base is a complete recipe, such as configs/dreambooth.yaml"
                if path in ("model", "data")
                else ", or be null to leave it out"
            )
        )
    _check_keys(node, ("target", "params"), path)
    if not isinstance(node["target"], str):
        raise UserError(f"config: {path}.target is {plain(node['target'])!r}: it must name a class")
    return node


def _of_call(
    params: Config,
    call: Callable[..., object],
    path: str,
    trust: Sequence[str],
    others: Mapping[str, object] | None = None,
    complete: bool = True,
) -> Iterator[Setting]:
    """The settings passed to `call`. others: keywords beyond its signature.

    complete: no keywords are added later, so those without a default are required.
    """
    own = {key: hint for key, hint in parameters(call).items() if not is_provided(hint)}
    types = {**(others or {}), **own}
    if others is not None or not takes_any(call):
        _check_keys(params, tuple(types), path)
    for key, parameter in signature(call).items():
        if complete and parameter.default is inspect.Parameter.empty and key not in params:
            raise UserError(f"config: {_joined(path, key)} is missing")
    for key, value in params.items():
        where, annotation = _joined(path, key), types.get(key, Any)
        if is_target(value):
            if problem_with(get_class(_target_node(value, where)["target"], trust), annotation):
                raise UserError(f"config: {where} is a target: it must be {allowed(annotation)}")
            yield from _of_target(value, where, trust, _made_by(annotation), complete=False)
        elif inner := _call_of(annotation):
            if not isinstance(value, dict):
                raise UserError(f"config: {where} is {plain(value)!r}: it must be keys and values")
            free = {name: object for name in value if str(name).startswith("_")}
            yield from _of_call(value, inner, where, trust, free, complete=is_dataclass(inner))
        elif isinstance(value, list) and value and (item := item_of(annotation)):
            for place, one in enumerate(value):
                if not isinstance(one, dict):
                    raise UserError(f"config: {where}.{place} is {plain(one)!r}: it must be keys and values")
                yield from _of_call(one, item, f"{where}.{place}", trust)
        else:
            yield Setting(where, params, key, annotation)


def _made_by(annotation: object) -> type:
    """The class returned by a callable of this (perhaps optional) type; `object` if unknown."""
    kinds = (annotation, *get_args(annotation))
    made = next((get_args(kind)[-1] for kind in kinds if get_origin(kind) is Callable), object)
    return made if isinstance(made, type) else object


def _call_of(annotation: object) -> Any:
    """The callable whose keywords a mapping of this type holds; None if unknown."""
    if is_dataclass(annotation):
        return annotation
    marks = [mark for mark in get_args(annotation) if isinstance(mark, KeywordsOf)]
    return get_class(marks[0].target, (marks[0].target,)) if marks else None


def _check_optimizers(node: object, path: str, trust: Sequence[str]) -> None:
    """Take a step on one number with every optimizer of a config: only its class knows which values are valid."""
    import torch

    if not isinstance(node, Mapping):
        return
    if is_target(node):
        found, params = get_class(node["target"], trust), node.get("params") or {}
        if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
            number = torch.zeros(1, requires_grad=True)
            number.grad = torch.zeros(1)
            try:
                optimizer = found([number], **params)
                if hasattr(optimizer, "train"):  # schedule-free optimizers
                    optimizer.train()
                optimizer.step()
            except Exception as error:  # libraries raise all kinds of errors for invalid values
                reason = str(error).partition("\n")[0]
                raise UserError(f"config: {path}.params: {node['target']} says: {reason}") from error
    for key, value in node.items():
        _check_optimizers(value, f"{path}.{key}", trust)


def _joined(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _out_of_range(value: object) -> str | None:
    """The problem with a number in `value` that is infinite, NaN, or too large for torch; None if there is none."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"is {value}: it must be a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "is a whole number with more than 63 bits"
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return next(filter(None, map(_out_of_range, items)), None)


def _check_keys(node: Mapping[str, object], known: Sequence[str], path: str) -> None:
    for key in node:
        if key not in known:
            raise UserError(f"config: unknown key '{_joined(path, key)}'{suggestion(key, known)}")


def suggestion(key: object, known: Sequence[str] | Mapping[str, object]) -> str:
    """Text to follow "unknown key": the known key most like `key`, or else all known keys."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(key), names, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known here: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
