"""Types of settings, which state allowed values once for configs and command lines.

`ldm/schema.py` checks a config's values against the annotations of its targets' signatures, and `option` makes an
argparse `type=` of the same annotations. The checks are pydantic's, without coercion: neither 1.5 nor true is an
`int`; an `int` is a valid `float`; infinity and NaN are always refused.
"""

import argparse
import difflib
import functools
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, cast, get_args, get_origin

from annotated_types import Ge, Gt, Le

from ldm.samplers import SAMPLERS

if TYPE_CHECKING:  # imported late below: `main.py --help` does not need pydantic
    from pydantic import GetCoreSchemaHandler, TypeAdapter
    from pydantic_core import CoreSchema

Config = dict[str, Any]
"""Nested keys and values of a YAML file. `ldm/schema.py` knows the type of each by its path; mypy cannot."""


@dataclass(frozen=True)
class Must:
    """A rule for use in `Annotated`: `test(value)` is true for allowed values."""

    test: Callable[[Any], bool]
    description: str
    """The allowed values, to follow "it must be "."""
    names: tuple[str, ...] = ()
    """All allowed names, if they can be listed: a wrong one gets a suggestion."""

    def __get_pydantic_core_schema__(self, source: object, handler: "GetCoreSchemaHandler") -> "CoreSchema":
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def _checked(self, value: object) -> object:
        if not self.test(value):
            raise ValueError(self.description)
        return value


@dataclass(frozen=True)
class KeywordsOf:
    """Marks, in `Annotated`, a mapping as keywords of a library's class; keys that start with _ are not checked."""

    target: str


class Unaffecting:
    """Marks, in `Annotated`, a setting that affects the loss record at most by rounding: a resume may change it."""


class Provided:
    """Marks, in `Annotated`, an argument that the run provides, and configs cannot set."""


def is_unaffecting(annotation: object) -> bool:
    """Whether a setting of this type is marked `Unaffecting`."""
    return any(mark is Unaffecting for mark in get_args(annotation))


def is_provided(annotation: object) -> bool:
    """Whether a parameter of this type is marked `Provided`."""
    return any(mark is Provided for mark in get_args(annotation))


def _is_folder_name(name: str) -> bool:
    plain = name.isprintable() and not set(name) & set("/\\")
    return plain and name not in ("", ".", "..") and len(name.encode()) <= 255


Count = Annotated[int, Ge(1)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Rates = NonNegativeFloat | dict[str, NonNegativeFloat]
"""One learning rate for all text encoders, or one for each by the name of its folder."""
Probability = Annotated[float, Ge(0), Le(1)]
Seed = Annotated[int, Must(lambda seed: 0 <= seed < 2**63, "a whole number from 0 to below 2**63")]
"""Within the range of torch's generators, with room for `seed + k`."""
Text = Annotated[str, Must(lambda text: bool(text.strip()), "text that is not empty")]
Prompts = Annotated[Sequence[Text], Must(lambda prompts: len(prompts) > 0, "a list of prompts")]
ClassWord = Annotated[
    str,
    Must(
        lambda word: bool(word.strip()) and not set(word) & set("{}[]"),
        "a noun such as dog, without brackets",
    ),
]
FolderName = Annotated[
    str, Must(_is_folder_name, "a plain folder name: no slashes, not '..', 255 bytes at most")
]
TimestepInterval = Annotated[
    Sequence[NonNegativeInt],
    Must(lambda pair: len(pair) == 2 and pair[0] < pair[1], "two increasing timesteps, as in [200, 800]"),
]
"""Timesteps from the first up to, but not including, the second."""
Precision = Literal["fp32", "bf16", "fp16"]
PredictionType = Literal["epsilon", "v_prediction"]
"""The network predicts the noise, or the velocity."""
SamplerName = Annotated[
    str, Must(lambda name: name in SAMPLERS, f"one of {', '.join(SAMPLERS)}", names=tuple(SAMPLERS))
]


def option(annotation: object) -> Callable[[str], object]:
    """A `type=` for argparse that reads a word as `annotation`; other words are one-line errors."""

    def read(word: str) -> object:
        from pydantic import ValidationError

        try:
            return _adapter(annotation, strict=False).validate_strings(word)
        except ValidationError as error:
            raise argparse.ArgumentTypeError(f"'{word}': it must be {allowed(annotation)}") from error

    return read


def problem_with(value: object, annotation: object) -> str | None:
    """What is wrong with `value`, to follow the name of its key; None if `annotation` allows it."""
    from pydantic import ValidationError
    from pydantic.errors import PydanticUserError

    for form in (value, tuple(value)) if isinstance(value, list) else (value,):  # YAML has no tuples
        try:
            _adapter(annotation, strict=True).validate_python(form)
            return None
        except PydanticUserError:  # an annotation that pydantic cannot check, such as one in quotes
            return None
        except ValidationError:
            continue
    return f"is {_shown(value)}: it must be {allowed(annotation)}{_nearest(value, annotation)}"


def takes_text(annotation: object) -> bool:
    """Whether an unquoted value is text for `annotation`, even if it looks like a number."""
    kind, _ = _parts(annotation)
    if get_origin(kind) in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        return all(takes_text(member) or _is_literal(member) for member in members) and any(
            map(takes_text, members)
        )
    origin = get_origin(kind)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return all(takes_text(member) for member in get_args(kind))
    return kind is str


def allowed(annotation: object) -> str:
    """`annotation` in words, such as "a whole number of at least 1, or null"."""
    kind, rules = _parts(annotation)
    for rule in rules:
        if isinstance(rule, Must):
            return rule.description
    members = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return ", or ".join(allowed(member) for member in members)
    if get_origin(kind) is Literal:
        return (
            " or ".join(map(str, members)) if len(members) < 3 else f"one of {', '.join(map(str, members))}"
        )
    return _bounded(_kind(get_origin(kind) or kind, members), rules)


def _kind(kind: object, members: Sequence[object]) -> str:
    """A plain type in words; members: the type arguments of a list or dictionary."""
    if kind in _KINDS:
        return _KINDS[kind]
    if not isinstance(kind, type):
        return str(kind)
    if is_dataclass(kind) or issubclass(kind, Mapping):
        return "keys and values"
    if issubclass(kind, Collection):
        return f"a list, each item {allowed(members[0])}" if members else "a list"
    return f"a {kind.__name__}"


_KINDS: dict[object, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "null",
    Any: "anything",
    Callable: "a target with its params",
}


def _bounded(words: str, rules: Sequence[object]) -> str:
    """`words`, which describe a type, with the bounds in an annotation's rules."""
    bounds: dict[str, float] = {}
    for rule in rules:
        bounds |= {
            name: getattr(rule, name)
            for name in ("ge", "gt", "le", "lt", "min_length")
            if hasattr(rule, name)
        }
    if "ge" in bounds and "le" in bounds:
        return f"{words.replace('finite ', '')} from {bounds['ge']} to {bounds['le']}"
    phrases = {
        "ge": "of at least",
        "gt": "above",
        "le": "of at most",
        "lt": "below",
        "min_length": "of length at least",
    }
    return " ".join([words, *(f"{phrases[name]} {bound}" for name, bound in bounds.items())])


def _parts(annotation: object) -> tuple[object, tuple[object, ...]]:
    """The plain type and the rules of an annotation."""
    if get_origin(annotation) is Annotated:
        kind, *rules = get_args(annotation)
        return kind, tuple(rules)
    return annotation, ()


def _nearest(value: object, annotation: object) -> str:
    """The allowed name most like `value`, as a question."""
    close = difflib.get_close_matches(str(value), [str(name) for name in _names(annotation)], n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _is_literal(annotation: object) -> bool:
    return get_origin(_parts(annotation)[0]) is Literal


def _names(annotation: object) -> list[object]:
    """The names that an annotation lists."""
    kind, rules = _parts(annotation)
    names: list[object] = [name for rule in rules if isinstance(rule, Must) for name in rule.names]
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        return [name for member in get_args(kind) for name in _names(member)]
    return names


def _shown(value: object) -> str:
    words = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return words if len(words) <= 60 else words[:57] + "..."


def _adapter(annotation: object, strict: bool) -> "TypeAdapter[object]":
    try:
        return _cached_adapter(annotation, strict)
    except TypeError:  # an annotation that cannot be hashed
        return _cached_adapter.__wrapped__(annotation, strict)


@functools.cache
def _cached_adapter(annotation: object, strict: bool) -> "TypeAdapter[object]":
    from pydantic import ConfigDict, TypeAdapter

    if get_origin(annotation) is tuple and len(get_args(annotation)) == 1:
        annotation = types.GenericAlias(
            tuple, (*get_args(annotation), ...)
        )  # what libraries mean by tuple[T]
    settings = ConfigDict(strict=strict, allow_inf_nan=False, arbitrary_types_allowed=True)
    return TypeAdapter(cast("type[object]", annotation), config=settings)
