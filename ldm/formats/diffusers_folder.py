"""Models in the folder layout of diffusers' pipelines, such as `StableDiffusionPipeline`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer

from ldm.errors import UserError
from ldm.files import is_special, replacing_folder
from ldm.formats.components import Components
from ldm.formats.families import FAMILIES, FORCE_ZEROS, NETWORKS, TEXT_ENCODERS, TOKENIZERS, tokenizer_of
from ldm.formats.modules import Network, assemble, bare_key, bare_state
from ldm.formats.network_configs import (
    family_of_configs,
    network_config,
    networks_of,
    read_network_configs,
    read_scheduler_config,
    refuse_other_pipelines,
    zero_unconditional,
)
from ldm.formats.safe_loading import load_checkpoint

WEIGHT_NAMES = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
PICKLE_NAMES = {"diffusers": "diffusion_pytorch_model", "transformers": "pytorch_model"}
TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
OLD_VAE_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""Names of the VAE's attention layers before diffusers 0.15 -> present names."""


def read_diffusers_folder(
    folder: Path, *, variant: str | None = None, with_vae: bool = True, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The parts of a pipeline folder, by field of `Components`.

    variant: infix of the weight files' names, such as "fp16". with_vae: False leaves out the VAE.
    Raises UserError for a model of another family and for missing or damaged files, before any weights are read, and
    for weights that do not fit.
    """
    refuse_other_pipelines(folder)
    wanted = [name for name in networks_of(folder) if with_vae or name != "vae"]
    configs = read_network_configs(folder, wanted)
    scheduler_config = read_scheduler_config(folder)
    tokenizers = read_tokenizers(folder, configs)
    weights = {name: read_weights(folder / name, name, variant) for name in wanted}
    modules = assemble(configs, weights, dtype, str(folder))
    return {
        **by_field(modules),
        "tokenizers": tokenizers,
        "scheduler_config": scheduler_config,
        "zero_unconditional": zero_unconditional(folder, family_of_configs(configs, folder)),
    }


def by_field(modules: Mapping[str, Network]) -> dict[str, Any]:
    """Networks, given by folder, by field of `Components`: the text encoders in their own dictionary."""
    others = {name: module for name, module in modules.items() if name not in TEXT_ENCODERS}
    return {**others, "text_encoders": {name: modules[name] for name in modules if name in TEXT_ENCODERS}}


def read_vae(folder: Path, *, variant: str | None, dtype: torch.dtype) -> AutoencoderKL:
    """A VAE from its own folder, or from the `vae` folder of a pipeline."""
    own = vae_folder(folder)
    configs, weights = {"vae": network_config(own, "vae")}, {"vae": read_weights(own, "vae", variant)}
    return assemble(configs, weights, dtype, str(own))["vae"]


def vae_folder(folder: Path) -> Path:
    """The VAE's own folder; `folder` is that or a pipeline's."""
    return folder / "vae" if (folder / "vae" / "config.json").is_file() else folder


def vae_files(folder: Path, variant: str | None) -> list[tuple[str, Path]]:
    """The files that `read_vae` reads: pairs of role and path, for the fingerprint."""
    return component_files(vae_folder(folder), "vae", variant)


def has_vae(folder: Path, variant: str | None) -> bool:
    """Whether `read_vae` would find weights."""
    return any((vae_folder(folder) / name).is_file() for name in weight_names("vae", variant))


def weight_names(component: str, variant: str | None) -> list[str]:
    """File names for the weights of `component`, in the order in which they are looked for."""
    middle = f".{variant}" if variant else ""
    library, _ = NETWORKS[component]
    return [f"{WEIGHT_NAMES[library]}{middle}.safetensors", f"{PICKLE_NAMES[library]}{middle}.bin"]


def weight_file(folder: Path, component: str, variant: str | None) -> Path:
    """The weights in the folder of `component`, `.safetensors` before `.bin`."""
    names = weight_names(component, variant)
    for name in names:
        if (folder / name).is_file():
            return folder / name
    others = sorted(path.name for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    hint = f"it has {', '.join(others)}: set the variant to match" if others else "it has no weights"
    raise UserError(f"{folder} has no {names[0]} ({hint})")


def read_weights(folder: Path, component: str, variant: str | None) -> dict[str, Tensor]:
    """The tensors of a component, under its class's current keys."""
    path = weight_file(folder, component, variant)
    tensors = load_checkpoint(path)
    if not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in tensors.items()):
        raise UserError(f"{path} contains other things than named tensors: it is not a file of weights")
    if component in TEXT_ENCODERS:  # version 4 of transformers put every key under `text_model.`
        tensors = {bare_key(key): value for key, value in tensors.items()}
        tensors.pop("embeddings.position_ids", None)
    if component == "vae":
        tensors = {new_vae_name(key): value for key, value in tensors.items()}
    return tensors


def new_vae_name(key: str) -> str:
    """The current name of a VAE key."""
    for old, new in OLD_VAE_NAMES.items():
        key = key.replace(old, new)
    return key


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in `folder`, or in its `tokenizer` folder. Raises `UserError` if there is none."""
    own = folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder
    if not (own / "vocab.json").is_file() and not (own / "tokenizer.json").is_file():
        raise UserError(f"{own} has no CLIP tokenizer (vocab.json and merges.txt, or tokenizer.json)")
    special = next((path for path in own.iterdir() if is_special(path)), None)
    if special:
        raise UserError(f"{special} is a pipe or a device, not a file: replace it by the tokenizer's file")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(str(own), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged file
        raise UserError(f"{own} has no readable CLIP tokenizer: {error}".splitlines()[0]) from None
    if not isinstance(tokenizer.model_max_length, (int, float)):
        raise UserError(f"{own}/tokenizer_config.json: model_max_length must be a number")
    if tokenizer.pad_token not in (tokenizer.bos_token, tokenizer.eos_token):
        # SD 2.x pads with "!", so transformers encodes it as padding in prompts too. OpenCLIP, which trained these
        # text encoders, encodes it as an exclamation mark (id 256) and pads with 0.
        tokenizer.split_special_tokens = True
    return tokenizer


def read_tokenizer(folder: Path, vocab_size: int) -> CLIPTokenizer:
    """The tokenizer in `folder`, which must have at most `vocab_size` tokens."""
    tokenizer = load_tokenizer(folder)
    if not 2 < len(tokenizer) <= vocab_size:  # transformers makes two tokens from unusable files
        raise UserError(f"{folder} has {len(tokenizer)} tokens, but the text encoder has {vocab_size} rows")
    return tokenizer


def read_tokenizers(folder: Path, configs: Mapping[str, Mapping[str, Any]]) -> dict[str, CLIPTokenizer]:
    """The tokenizer of each text encoder in `configs`, by folder name."""
    rows = {
        tokenizer_of(name): config["vocab_size"] for name, config in configs.items() if name in TEXT_ENCODERS
    }
    return {name: read_tokenizer(folder / name, vocab_size) for name, vocab_size in rows.items()}


def files_of(folder: Path, variant: str | None, with_vae: bool = True) -> list[tuple[str, Path]]:
    """The files that are read from a pipeline folder: pairs of role and path, for the fingerprint."""
    files = []
    networks = networks_of(folder)
    for name in networks:
        if with_vae or name != "vae":
            files += component_files(folder / name, name, variant)
    for own in (tokenizer_of(name) for name in networks if name in TEXT_ENCODERS):
        files += [(f"{own}/{name}", folder / own / name) for name in TOKENIZER_FILES]
    files.append(("scheduler", folder / "scheduler" / "scheduler_config.json"))
    if any(FORCE_ZEROS in family.index for family in FAMILIES if family.networks == networks):
        files.append(("model_index", folder / "model_index.json"))
    return [(role, path) for role, path in files if path.is_file()]


def component_files(folder: Path, component: str, variant: str | None) -> list[tuple[str, Path]]:
    """Paths of the config and the weights of one network."""
    weights = weight_file(folder, component, variant)
    return [(f"{component}/config", folder / "config.json"), (f"{component}/weights", weights)]


def save_diffusers_folder(
    components: Components, folder: str | Path, dtype: torch.dtype, notes: Mapping[str, str] | None = None
) -> Path:
    """Write a complete diffusers pipeline to `folder` in `dtype`, atomically.

    notes: further texts by file name, such as a model card.
    Text-encoder keys begin with `text_model.`, and the tokenizer also has vocab.json and merges.txt: without these,
    transformers 4 loads random weights or no tokenizer.
    Replaces an earlier model. Raises `UserError` if `folder` has other content, or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "model_index.json").is_file() and not is_empty_folder(folder):
        raise UserError(f"{folder} exists and is not a model: choose another name, or move it away")
    try:
        with replacing_folder(folder) as temporary:
            write_json(temporary / "model_index.json", model_index(components))
            for name, network in components.networks.items():
                write_network(network, name, temporary / name, dtype)
            for name, encoder in components.text_encoders.items():
                own = tokenizer_of(name)
                write_tokenizer(components.tokenizers[own], temporary / own, encoder.config)
            write_json(temporary / "scheduler" / "scheduler_config.json", components.scheduler_config)
            for name, text in (notes or {}).items():
                (temporary / name).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:  # a full disk is a SafetensorError while weights are written
        raise UserError(
            f"{folder} cannot be written ({error}): free some space, or choose another place"
        ) from None
    return folder


def is_empty_folder(path: Path) -> bool:
    """Whether `path` is an empty folder."""
    return path.is_dir() and not any(path.iterdir())


def model_index(components: Components) -> dict[str, Any]:
    """The content of `model_index.json`. There is no safety checker, because it is not a part of training."""
    scheduler = components.scheduler_config.get("_class_name", "DDIMScheduler")
    family = components.family
    parts = {**NETWORKS, **TOKENIZERS}
    return {
        "_class_name": family.pipeline,
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        **family.index,
        **({FORCE_ZEROS: components.zero_unconditional} if FORCE_ZEROS in family.index else {}),
        "scheduler": ["diffusers", scheduler],
        **{name: list(parts[name]) for name in sorted((*family.networks, *family.tokenizers))},
    }


def write_network(module: Network, component: str, folder: Path, dtype: torch.dtype) -> None:
    """Write the config and the weights of one network."""
    library, kind = NETWORKS[component]
    state = module.state_dict() if library == "diffusers" else under_text_model(module)
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    if component in TEXT_ENCODERS:
        precision = str(dtype).removeprefix("torch.")
        config = {**module.config.to_dict(), "architectures": [kind], "dtype": precision}
        config["torch_dtype"] = precision  # transformers 4's name for it
    else:
        config = json.loads(module.to_json_string())
        config.pop("_name_or_path", None)
    write_json(folder / "config.json", config)
    save_file(tensors, folder / f"{WEIGHT_NAMES[library]}.safetensors", metadata={"format": "pt"})


def under_text_model(text_encoder: Network) -> dict[str, Tensor]:
    """The state of a text encoder with transformers 4's names, which 5 reads too."""
    state = bare_state(text_encoder).items()
    return {key if key.startswith("text_projection.") else f"text_model.{key}": value for key, value in state}


def write_tokenizer(tokenizer: CLIPTokenizer, folder: Path, text_config: CLIPTextConfig) -> None:
    """Write a CLIP tokenizer for all versions of transformers."""
    # A fast tokenizer would save the padding and truncation of its last call.
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(str(folder))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"], indent=None)
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs, ""]), encoding="utf-8")
    new = {token: id for token, id in tokenizer.added_tokens_encoder.items() if token not in model["vocab"]}
    if new:  # for transformers 4
        write_json(folder / "added_tokens.json", new)
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    write_json(folder / "special_tokens_map.json", special)
    config = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": text_config.max_position_embeddings,
        **special,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", config)


def write_json(path: Path, content: Mapping[str, Any], indent: int | None = 2) -> None:
    """Write `content` as JSON; the folder is created."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
