"""Rows of numbers on disk, one JSON object a line: the loss record, and what callbacks measure."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import no_link, replacing


def append_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Append `rows` to a JSON Lines file, floats at full precision. Raises OSError, and then writes none."""
    with open(path, "ab", buffering=0, opener=no_link) as file:
        size, text = file.tell(), "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            written = file.write(text)
            if written < len(text):  # the disk took only a part
                file.write(text[written:])
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; an incomplete last line is left out.

    Raises UserError for a line that is not a row, an object with a step.
    """
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")[:-1]
    return [_row(line, f"{path}, line {number}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> dict[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        raise UserError(f"{where} is not a row of a loss record: fix or remove it")
    return row


def truncate_rows(path: Path, last_step: int) -> None:
    """Remove the rows after `last_step`, which a resumed run writes again."""
    if not path.is_file():
        return
    kept = [row for row in read_rows(path) if row["step"] <= last_step]
    with replacing(path) as temporary:
        append_rows(temporary, kept)


def checked_rows(rows: object) -> list[dict[str, float]]:
    """The `rows` of a checkpoint, if each has a step, plain names as keys and numbers as values.

    Raises UserError otherwise: rows are written to a file unchanged.
    """
    if isinstance(rows, list) and all(isinstance(row, dict) and _is_row(row) for row in rows):
        return rows
    raise UserError("checkpoint: its unwritten_rows are not rows of a loss record; use another checkpoint")


def _is_row(row: dict[object, object]) -> bool:
    named = all(isinstance(key, str) and re.fullmatch("[a-z][a-z0-9_]{0,39}", key) for key in row)
    return (
        named and type(row.get("step")) is int and all(type(value) in (int, float) for value in row.values())
    )
