"""Checks untrusted plain data against a description before use.

Each kind of file has one description, a subclass of `Content`: a run's checkpoint, the configs in a base model's
folder, the note in an exported folder.
"""

import json
import reprlib
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from ldm.errors import UserError
from ldm.files import is_special

MAX_JSON_BYTES = 50_000_000
"""Larger JSON files are not read; the largest legitimate one is a vocabulary of one megabyte."""


class Content(BaseModel):
    """The required fields of a file and their types, without coercion. Other fields are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


Kind = TypeVar("Kind", bound=Content)


def described(kind: type[Kind], content: object, source: str | Path) -> Kind:
    """`content` as a `kind`. Raises UserError with `source`, the first wrong field and its allowed values."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        more = f" (and {len(others)} more)" if others else ""
        raise UserError(f"{source}: {_phrase(first)}{more}") from None


def _phrase(error: ErrorDetails) -> str:
    """One of pydantic's errors as a phrase."""
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"{where} is missing"
    rule = error["msg"].removeprefix("Value error, ").replace("Input should be", "it must be")
    if not where:
        return rule
    value = error["input"]
    if value is None or isinstance(value, (bool, int, float, str)):
        return f"{where} is {reprlib.repr(value)}: {rule}"
    return f"{where} is a {type(value).__name__}: {rule}"


def read_json(path: Path) -> dict[str, object]:
    """A JSON object. Raises UserError if the file is missing, damaged, too large or not a regular file."""
    try:
        if is_special(path):
            raise UserError(f"{path} is a pipe or a device, not a file: replace it by the JSON file")
        if path.stat().st_size > MAX_JSON_BYTES:
            raise UserError(f"{path} is too large for a JSON file of a model: copy or download it again")
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder is not a complete diffusers model") from None
    except RecursionError:
        raise UserError(f"{path} cannot be read as JSON: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object: the folder is not a complete diffusers model")
    return content
