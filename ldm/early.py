"""Early checks of a run's command line, without heavy imports.

The full check follows when the classes that configs name are imported (`ldm/schema.py`).
"""

import argparse
import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.config import merged
from ldm.errors import UserError
from ldm.files import PROJECT, find_image_folder
from ldm.schema import plain, suggestion


def refuse_early(options: argparse.Namespace) -> None:
    """Raise UserError for missing files, and for keys that the config's classes do not take."""
    if options.resume:
        require_run(Path(options.resume))
    if not options.base:
        return
    config = merged(options.base, options.overrides)
    for path, node in _nodes(config):
        _refuse_unknown_keys(node, path)
    data = config.get("data")
    root = options.data_root or (data.get("params", {}).get("data_root") if isinstance(data, dict) else None)
    if isinstance(root, str):
        find_image_folder(root)
    if options.reg_data_root:
        find_image_folder(options.reg_data_root)


def require_run(resumed: Path) -> None:
    """Raise UserError if the path given to `--resume` does not exist."""
    if not resumed.exists():
        raise UserError(f"--resume {resumed}: no such run folder or checkpoint")


def _nodes(config: Mapping[str, object]) -> list[tuple[str, Any]]:
    """The nodes of a config that name a class, with their paths."""
    lightning = config.get("lightning")
    callbacks = lightning.get("callbacks") if isinstance(lightning, Mapping) else None
    nodes = [(name, config.get(name)) for name in ("model", "data")]
    if isinstance(callbacks, Mapping):
        nodes += [(f"lightning.callbacks.{name}", node) for name, node in callbacks.items()]
    return [(path, node) for path, node in nodes if isinstance(node, Mapping)]


def _refuse_unknown_keys(node: Mapping[str, object], path: str) -> None:
    target, params = plain(node.get("target")), node.get("params")
    known = keywords(target) if isinstance(target, str) else None
    if known is None or not isinstance(params, Mapping):
        return
    for key in params:
        if key not in known:
            raise UserError(f"config: unknown key '{path}.params.{key}'{suggestion(key, known)}")


def keywords(target: str) -> Sequence[str] | None:
    """The keywords of a class of this project, read from its source; None if they cannot be read there."""
    module, _, name = target.rpartition(".")
    source = PROJECT.joinpath(*module.split(".")).with_suffix(".py")
    if not module.startswith("ldm.") or not source.is_file():
        return None
    classes = [
        n for n in ast.parse(source.read_text()).body if isinstance(n, ast.ClassDef) and n.name == name
    ]
    inits = [n for c in classes for n in c.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
    if not inits or inits[0].args.kwarg:
        return None
    arguments = inits[0].args
    return [argument.arg for argument in (*arguments.args[1:], *arguments.kwonlyargs)]
