"""Stable Diffusion in the folder layout of diffusers' `StableDiffusionPipeline`."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from transformers import CLIPTokenizer

from ldm.errors import UserError
from ldm.formats.components import SCHEDULE_KEYS
from ldm.formats.modules import COMPONENTS, assemble
from ldm.formats.safe_loading import load_checkpoint

WEIGHT_NAMES = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
PICKLE_NAMES = {**WEIGHT_NAMES, "text_encoder": "pytorch_model"}
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
SCHEDULE_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
"""What diffusers' schedulers assume for a key that an older config lacks."""

OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Attention layers of the first stage in folders written before diffusers 0.15, and their names now."""


def read_diffusers_folder(folder: Path, *, variant: str | None, dtype: torch.dtype) -> dict:
    """The networks, the tokenizer and the `scheduler_config` of a pipeline folder, by name.

    `variant`: the middle part of the weight files' names, such as "fp16".
    Raises `UserError` for a missing or damaged file and for keys that do not fit.
    """
    configs = {name: read_json(folder / name / "config.json") for name in COMPONENTS}
    weights = {name: read_weights(folder / name, name, variant) for name in COMPONENTS}
    modules = assemble(configs, weights, dtype, str(folder))
    tokenizer = read_tokenizer(folder / "tokenizer", modules["text_encoder"].config.vocab_size)
    return {**modules, "tokenizer": tokenizer, "scheduler_config": read_scheduler_config(folder)}


def read_vae(folder: Path, *, variant: str | None, dtype: torch.dtype) -> AutoencoderKL:
    """A first stage from its own folder, or from the `vae` folder of a pipeline."""
    own = folder / "vae" if (folder / "vae" / "config.json").is_file() else folder
    configs, weights = {"vae": read_json(own / "config.json")}, {"vae": read_weights(own, "vae", variant)}
    return assemble(configs, weights, dtype, str(own))["vae"]


def read_json(path: Path) -> dict:
    """A JSON object; `UserError` when the file is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: the folder is not a complete diffusers model") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object: the folder is not a complete diffusers model")
    return content


def weight_file(folder: Path, component: str, variant: str | None) -> Path:
    """The weights in the folder of `component`, `.safetensors` before `.bin`."""
    middle = f".{variant}" if variant else ""
    names = [f"{WEIGHT_NAMES[component]}{middle}.safetensors", f"{PICKLE_NAMES[component]}{middle}.bin"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    hint = f"it holds {', '.join(others)}: set the variant to match" if others else "it holds no weights"
    raise UserError(f"{folder} has no {names[0]} ({hint})")


def read_weights(folder: Path, component: str, variant: str | None) -> dict[str, Tensor]:
    """The tensors of a component under the keys that its class uses now."""
    tensors = load_checkpoint(weight_file(folder, component, variant))
    if component == "text_encoder":  # version 4 of transformers put every key under `text_model.`
        tensors = {key.removeprefix("text_model."): value for key, value in tensors.items()}
        tensors.pop("embeddings.position_ids", None)
    if component == "vae":
        tensors = {new_vae_name(key): value for key, value in tensors.items()}
    return tensors


def new_vae_name(key: str) -> str:
    """The present name of a first-stage key."""
    for old, new in OLD_VAE_NAMES.items():
        key = key.replace(old, new)
    return key


def read_tokenizer(folder: Path, vocab_size: int) -> CLIPTokenizer:
    """The tokenizer of `folder`, which must have at most `vocab_size` tokens."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing: the folder is not a complete diffusers model")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder} holds no readable CLIP tokenizer: {error}".splitlines()[0]) from None
    if not 2 < len(tokenizer) <= vocab_size:
        raise UserError(f"{folder} has {len(tokenizer)} tokens, but the text encoder has {vocab_size} rows")
    return tokenizer


def read_scheduler_config(folder: Path) -> dict:
    """`scheduler/scheduler_config.json` as plain values, with `SCHEDULE_KEYS` filled in."""
    config = {**SCHEDULE_DEFAULTS, **read_json(folder / "scheduler" / "scheduler_config.json")}
    assert all(key in config for key in SCHEDULE_KEYS)
    return config


def files_of(folder: Path, variant: str | None) -> list[tuple[str, Path]]:
    """What is read from a pipeline folder: pairs of role and path, for the fingerprint."""
    files = []
    for name in COMPONENTS:
        files += component_files(folder / name, name, variant)
    files += [(f"tokenizer/{name}", folder / "tokenizer" / name) for name in TOKENIZER_FILES]
    files.append(("scheduler", folder / "scheduler" / "scheduler_config.json"))
    return [(role, path) for role, path in files if path.is_file()]


def component_files(folder: Path, component: str, variant: str | None) -> list[tuple[str, Path]]:
    """The config and the weights of one network."""
    weights = weight_file(folder, component, variant)
    return [(f"{component}/config", folder / "config.json"), (f"{component}/weights", weights)]
