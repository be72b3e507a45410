"""Files that hold a part of a model, and are added to a base: LoRAs, new tokens, Custom Diffusion."""

import argparse
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ldm.errors import UserError, say
from ldm.files import find, find_near
from ldm.formats.custom_diffusion import DELTAS_FILE, read_deltas
from ldm.formats.embeddings import EMBEDDINGS_FILE, read_embeddings
from ldm.formats.families import tokenizer_of
from ldm.formats.fingerprint import file_hash
from ldm.formats.subject import SUBJECT_FILE, read_subject
from ldm.methods.adapter_layers import merge_adapters
from ldm.methods.load import PART_FILES, LoadedModel
from ldm.methods.lora import add_loras, file_and_scale
from ldm.models.latent_diffusion import LatentDiffusion
from ldm.models.new_tokens import add_rows, taken_tokens, vectors_of

FACTS = {"lora": "loras", "embeds": "embeds", "delta": "delta"}
"""Option -> fact in a PNG."""


@dataclass(frozen=True)
class Parts:
    """The files, as the command line names them."""

    lora: Sequence[str] = ()
    """`FILE` or `FILE:SCALE`."""
    embeds: Sequence[str] = ()
    """`FILE` or `FILE:TOKEN`."""
    delta: Sequence[str] = ()
    """At most one file."""

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Parts":
        """Those of `ldm.command_line.add_part_options`."""
        return cls(options.lora, options.embeds, options.delta)

    def __bool__(self) -> bool:
        return bool(self.lora or self.embeds or self.delta)

    def facts(self) -> dict[str, str]:
        """What a PNG says of them, by FACTS."""
        own = {key: getattr(self, name) for name, key in FACTS.items()}
        return {key: json.dumps(words) for key, words in own.items() if words}


def add_parts(loaded: LoadedModel, parts: Parts) -> None:
    """Add the files to a model: first Custom Diffusion, whose weights replace the base's, then LoRAs, then tokens.

    Subjects of a run's exported folder are added to the model's, unless their placeholders are taken. Raises UserError
    for files that are missing, of another kind, or another model's.
    """
    named = [(option, Path(word).parts[-2:]) for option in FACTS for word in getattr(parts, option)]
    loaded.added = [f"--{option} {'/'.join(end)}" for option, end in named]
    for name in parts.delta:
        path = _file(name, DELTAS_FILE, "--delta")
        merge_adapters(loaded.model)
        put_deltas(loaded.model, path)
        _note(loaded, path, "")
    add_loras(loaded, parts.lora)
    for word in parts.embeds:
        path, token = _file_and_token(word)
        add_embeddings(loaded.model, path, token)
        _note(loaded, path, token)
    warn_of_other_parts(loaded, parts)


def warn_of_other_parts(loaded: LoadedModel, parts: Parts) -> None:
    """Warn of what else is in the parts' folders and not in the model, and of runs with another clip_skip."""
    given = {
        "--lora": {find(file_and_scale(word)[0]) for word in parts.lora},
        "--delta": {find(name) for name in parts.delta},
        "--embeds": {_file_and_token(word)[0].parent for word in parts.embeds},
    }
    for folder in sorted(set().union(*given.values())):
        for option, name in PART_FILES.items():
            if os.path.isfile(folder / name) and not {folder, folder / name} & given[option]:
                say(f"warning: {folder} also has {name}, which is not in the model: add {option} {folder}")
        warn_of_clip_skip(folder, loaded.model, is_run=loaded.config is not None)


def warn_of_clip_skip(part: Path, model: LatentDiffusion, is_run: bool = False) -> None:
    """Warn if the run that wrote `part`, its folder or a file in it, conditioned on another layer than `model`.

    is_run: whether `model` is a run's, which keeps its own.
    """
    folder = part.parent if part.is_file() else part
    trained = read_subject(folder).clip_skip
    if os.path.isfile(folder / SUBJECT_FILE) and trained != model.clip_skip:
        say(
            f"warning: {part} was trained with clip_skip {trained}, and this model has {model.clip_skip}"
            + ("" if is_run else f": add --clip_skip {trained}")
        )


@torch.no_grad()
def put_deltas(model: LatentDiffusion, path: Path) -> None:
    """Put the weights of the Custom Diffusion file `path` in place of the model's."""
    weights = model.unet.state_dict()
    for name, value in read_deltas(path, model.unet).items():
        weights[name].copy_(value)


def add_embeddings(model: LatentDiffusion, path: Path, token: str = "") -> None:
    """Add the token of the textual inversion file `path` to the model.

    token: its text in prompts; empty for the file's own, that of the run's folder, or the file's name.
    """
    widths = {
        name: encoder.get_input_embeddings().weight.shape[1] for name, encoder in model.text_encoders.items()
    }
    own, vectors = read_embeddings(path, widths)
    token = token or own or _identifier_beside(path) or path.stem
    names = vectors_of(token, len(next(iter(vectors.values()))))
    if len(token.split()) != 1:
        raise UserError(
            f"--embeds {path}: a token is a word without spaces: name it, as in {path}:<my-subject>"
        )
    for name in model.text_encoders:
        if taken := taken_tokens(names, model.tokenizers[tokenizer_of(name)]):
            raise UserError(
                f"--embeds {path}: '{taken[0]}' is a token already: name it anew, as in {path}:<{token.strip('<>')}-2>"
            )
    for name, encoder in model.text_encoders.items():
        add_rows(encoder, model.tokenizers[tokenizer_of(name)], names, vectors[name])


def word_near(word: str, image: Path) -> str:
    """`FILE` or `FILE:...` of the PNG `image`, with the file found as `find_near` finds it."""
    name, colon, rest = word.rpartition(":")
    found = find_near(word, image)
    return f"{find_near(name, image)}:{rest}" if colon and not os.path.exists(found) else str(found)


def _file(name: str, usual: str, option: str) -> Path:
    """The file `name`, or the `usual` one in that folder. Raises UserError if there is none."""
    path = find(name)
    path = path / usual if os.path.isdir(path) else path
    if not os.path.isfile(path):
        raise UserError(f"{option} {name}: there is no {path}; name a file, or a folder with {usual}")
    return path


def _file_and_token(word: str) -> tuple[Path, str]:
    """Parse `FILE` or `FILE:TOKEN`."""
    name, colon, token = word.rpartition(":")
    if not colon or os.path.exists(find(word)):
        name, token = word, ""
    return _file(name, EMBEDDINGS_FILE, "--embeds"), token


def _identifier_beside(path: Path) -> str:
    """The identifier of the run that wrote `path`, which layouts for two text encoders do not hold."""
    return (read_subject(path.parent).identifier or "") if path.name == EMBEDDINGS_FILE else ""


def _note(loaded: LoadedModel, path: Path, token: str) -> None:
    """Take the file at `path` into the hash of the model's weights, and its folder's subjects among the model's.

    token: another text for the file's token, to which the folder's subjects do not refer.
    """
    words: Mapping[str, str] = {"": loaded.weights, "file": file_hash(path), "token": token}
    loaded.weights = hashlib.blake2b("\n".join(words.values()).encode(), digest_size=16).hexdigest()
    if token or path.name not in (EMBEDDINGS_FILE, DELTAS_FILE):
        return
    taken = {subject.placeholder for subject in loaded.subjects}
    new = [subject for subject in read_subject(path.parent).learned() if subject.placeholder not in taken]
    loaded.subjects = (*loaded.subjects, *new)
