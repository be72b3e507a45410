"""Stable Diffusion in a single file, in the layout of CompVis, Stability AI and AUTOMATIC1111's web UI.

A single file has no network sizes, noise schedule or tokenizer; these come from `configs/stable-diffusion/`. The
tensors of an SD 2.x network do not show whether it predicts noise or velocity. The first of these sources decides:

1. the caller's `prediction_type`;
2. the file itself: `modelspec.prediction_type` in a safetensors file's metadata,
   `prediction_type` at the top of a `.ckpt`, or a tensor named `v_pred`;
3. `model.params.parameterization` in a `.yaml` of the same name beside the file;
4. for SD 1.x and SDXL, epsilon; for SD 2.x an error, since training on the wrong target fails late and silently.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ldm.diffusion.sampling import ZERO_TERMINAL_SNR
from ldm.errors import UserError
from ldm.files import replacing
from ldm.formats.components import Components
from ldm.formats.compvis_layout import (
    compvis_key_map,
    from_compvis,
    surplus,
    to_compvis,
    with_text_model,
)
from ldm.formats.compvis_names import UNET_PREFIX, VAE_PREFIX
from ldm.formats.diffusers_folder import by_field, new_vae_name, read_tokenizers
from ldm.formats.families import FAMILIES, OTHER_KEYS, READ_HERE, SD1, SD2, SDXL, Family
from ldm.formats.modules import assemble, empty_module, misfit
from ldm.formats.network_configs import (
    network_config,
    read_network_configs,
    read_scheduler_config,
    refuse_other_channels,
    spelt_prediction_type,
    zero_unconditional,
)
from ldm.formats.safe_loading import first_line, is_safetensors, load_checkpoint

VELOCITY_MARK, ZERO_TERMINAL_MARK = "v_pred", "ztsnr"
"""Empty tensors that say what a file of SDXL predicts, and that its noise schedule ends in pure noise."""


def read_single_file(
    path: Path,
    *,
    configs: Path | None = None,
    prediction_type: str | None = None,
    use_ema: bool = True,
    with_vae: bool = True,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """The parts of a single file, by field of `Components`, and whether its noise schedule ends in pure noise.

    configs: a folder with component configs and tokenizer in diffusers' layout, for models of another size.
    with_vae: False ignores the file's VAE.
    Raises `UserError` for a file of another kind and for missing, unused or misshapen keys.
    """
    content = load_checkpoint(path)
    tensors = tensors_of(content)
    family = recognise(tensors, path)
    said = prediction_type or said_by_file(path, content, tensors) or said_by_yaml(path.with_suffix(".yaml"))
    prediction = prediction_of(path, family, said)
    folder = configs or family.configs
    wanted = [name for name in family.networks if with_vae or name != "vae"]
    component_configs = read_network_configs(folder, wanted)
    if configs is None and family is SD2 and prediction == "epsilon":
        component_configs["unet"]["sample_size"] = 64  # SD 2.x "base" is trained at 512 px
    refuse_other_inputs(tensors, component_configs["unet"].get("in_channels", 4), path)
    key_map = compvis_key_map(
        {name: empty_module(name, config, folder) for name, config in component_configs.items()}
    )
    modules = assemble(
        component_configs,
        from_compvis(tensors, key_map, use_ema),
        dtype,
        str(path),
        surplus(tensors, key_map),
    )
    scheduler_config = {**read_scheduler_config(folder), "prediction_type": prediction}
    tokenizers = read_tokenizers(folder, component_configs)
    return {
        **by_field(modules),
        "tokenizers": tokenizers,
        "scheduler_config": scheduler_config,
        "zero_unconditional": zero_unconditional(folder, family),
        "zero_terminal_snr": ZERO_TERMINAL_MARK in tensors and prediction == "v_prediction",
    }


def read_vae_file(path: Path, *, family: Family = SD1, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """A VAE from its own file or a whole model's, with CompVis' or diffusers' names.

    family: of the model that uses it, since the file does not say how its latents are scaled.
    """
    tensors = tensors_of(load_checkpoint(path))
    config = network_config(family.configs / "vae", "vae")
    if any(key.startswith("encoder.mid_block.") for key in tensors):
        weights, extra = {new_vae_name(key): value for key, value in tensors.items()}, {}
    else:
        if any(key.startswith("encoder.") for key in tensors):
            tensors = {VAE_PREFIX + key: value for key, value in tensors.items()}
        key_map = compvis_key_map({"vae": empty_module("vae", config)})
        weights = from_compvis(tensors, key_map, use_ema=False)["vae"]
        extra = {"vae": surplus(tensors, key_map).get("vae", [])}
    return assemble({"vae": config}, {"vae": weights}, dtype, str(path), extra)["vae"]


def tensors_of(content: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a checkpoint, in `state_dict` or at the top, under CompVis' usual names."""
    inner = content.get("state_dict", content)
    inner = inner if isinstance(inner, Mapping) else content
    return {with_text_model(str(key)): value for key, value in inner.items() if isinstance(value, Tensor)}


def recognise(tensors: Mapping[str, Tensor], path: Path) -> Family:
    """The family of a file, by its text encoders' keys. Raises a `UserError` that says what else it is."""
    starts = [start for start in OTHER_KEYS if any(key.startswith(start) for key in tensors)]
    has_unet = any(key.startswith(UNET_PREFIX + "input_blocks.") for key in tensors)
    for family in FAMILIES if has_unet else ():
        encoders = [encoder.keys for encoder in family.text_encoders.values()]
        if all(any(key.startswith(start) for key in tensors) for start in encoders):
            return family
    if not has_unet or "conditioner.embedders." in starts:
        kind = OTHER_KEYS[starts[0]] if starts else "not a Stable Diffusion model known here"
        raise UserError(f"{path} is {kind}")
    raise UserError(f"{path} has a UNet but no text encoder of {READ_HERE}: give a whole model")


def refuse_other_inputs(tensors: Mapping[str, Tensor], channels: int, path: Path) -> None:
    """Raise UserError for inpainting, depth and upscaling models, with the same keys but more input channels."""
    weight = tensors.get(UNET_PREFIX + "input_blocks.0.0.weight")
    if weight is not None and weight.ndim == 4:
        refuse_other_channels(weight.shape[1], channels, path)


def prediction_of(path: Path, family: Family, said: str | None) -> str:
    """The file's `PredictionType`. Raises `UserError` if it is not known."""
    said = said or family.prediction_type
    if said is None:
        raise UserError(
            f"{path} is a {family.name} model that does not say what it predicts: set --prediction_type, or in a "
            "training config model.params.prediction_type, to v_prediction (768 px models) or epsilon (512 px), or "
            "put the model's .yaml beside it"
        )
    return spelt_prediction_type(said, path)


def said_by_file(path: Path, content: Mapping[str, object], tensors: Mapping[str, Tensor]) -> str | None:
    """The prediction type given in the file, in its spelling."""
    if is_safetensors(path):
        with safe_open(path, framework="pt") as file:
            said = (file.metadata() or {}).get("modelspec.prediction_type")
    else:
        said = content.get("prediction_type")
    if said is None and VELOCITY_MARK in tensors:
        return "v_prediction"
    return None if said is None else str(said)


def said_by_yaml(path: Path) -> str | None:
    """The prediction type in a CompVis config, by default "eps"; None without a file."""
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        return str(config["model"]["params"].get("parameterization", "eps"))
    except (
        OSError,
        yaml.YAMLError,
        RecursionError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
    ) as error:
        raise UserError(
            f"{path} beside the model is not a CompVis config ({first_line(error)}): fix or move it"
        ) from None


def save_single_file(
    components: Components, path: str | Path, dtype: torch.dtype, facts: Mapping[str, str] | None = None
) -> Path:
    """Write `components` to one `.safetensors` or `.ckpt` file in CompVis' layout, atomically.

    facts: further metadata of a safetensors file, such as its title; a `.ckpt` keeps only the prediction type.
    Raises `UserError` for another extension, if `path` exists, and if it cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".ckpt"):
        raise UserError(f"{path} ends in neither .safetensors nor .ckpt: use one of them, or a folder")
    if path.exists():
        raise UserError(f"{path} exists already: choose another name, or move it away")
    state = to_compvis(components.networks)
    tensors = {key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}
    prediction = components.scheduler_config["prediction_type"]
    tensors |= dict.fromkeys(marks_of(components), torch.zeros(0, dtype=dtype))
    try:
        with replacing(path) as temporary:
            if path.suffix == ".ckpt":
                torch.save({"state_dict": tensors, "prediction_type": prediction}, temporary)
            else:
                save_file(tensors, temporary, metadata={**metadata_of(components), **(facts or {})})
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of them
        raise UserError(
            f"{path} cannot be written ({error}): free some space, or choose another place"
        ) from None
    return path


def marks_of(components: Components) -> list[str]:
    """The marks of SDXL that predicts the velocity, by which ComfyUI and others know it; none for other models."""
    config = components.scheduler_config
    if components.family is not SDXL or config["prediction_type"] != "v_prediction":
        return []
    return [VELOCITY_MARK, *([ZERO_TERMINAL_MARK] if config.get(ZERO_TERMINAL_SNR) else [])]


def published_family(components: Components) -> Family | None:
    """The family whose published networks have the same keys and shapes as these; None if there is none."""
    own = {name: network.state_dict() for name, network in components.networks.items()}
    for family in FAMILIES:
        if own.keys() == set(family.networks):
            configs = read_network_configs(family.configs, family.networks)
            published = {name: empty_module(name, config).state_dict() for name, config in configs.items()}
            if not any(misfit(published[name], own[name]) for name in published):
                return family
    return None


def metadata_of(components: Components) -> dict[str, str]:
    """Metadata of a safetensors file, with the keys of ModelSpec 1.0.0 (Stability AI)."""
    prediction = components.scheduler_config["prediction_type"]
    side = components.unet.config.sample_size * 2 ** (len(components.vae.config.block_out_channels) - 1)
    family = components.family
    return {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": family.architecture[prediction],
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else "epsilon",
        "modelspec.resolution": f"{side}x{side}",
    }
