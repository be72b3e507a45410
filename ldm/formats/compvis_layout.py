"""Converts tensors between CompVis' single files and the networks' state dicts, without reading files.

Besides names (`compvis_names`), three layouts differ: the VAE's attention has four 1 x 1 convolutions in CompVis and
four linear layers in diffusers; OpenCLIP joins query, key and value into one matrix and transposes its text projection.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ldm.formats import compvis_names
from ldm.formats.compvis_names import UNET_PREFIX, VAE_PREFIX
from ldm.formats.families import FAMILIES, SD2, TEXT_ENCODERS, family_of
from ldm.formats.modules import Network, bare_key, bare_state

ENCODERS = tuple(item for family in FAMILIES for item in family.text_encoders.items())
"""The text encoders of all families, with their folder names."""
PREFIXES = {
    "unet": (UNET_PREFIX, "model_ema."),
    "vae": (VAE_PREFIX,),
    **{name: tuple({e.place for own, e in ENCODERS if own == name}) for name in TEXT_ENCODERS},
}
"""Prefixes of a component's keys in the single files of all families."""

INERT_KEYS = (
    # The noise schedule, which is in the scheduler config.
    r"betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recipm?1?_alphas_cumprod",
    r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor",
    # Counters of the moving average; the VAE's training losses and its own moving average.
    r"model_ema\.(decay|num_updates)|first_stage_model\.(loss|model_ema)\..*|v_pred|ztsnr|denoiser\.sigmas",
    # The position ids 0, 1, ..., 76, and CLIP's projections, which most text encoders here do not use.
    *(
        rf"{re.escape(encoder.keys)}(text_projection|logit_scale|attn_mask)"
        if encoder.open_clip
        else rf"{re.escape(encoder.keys)}embeddings\.position_ids|"
        rf"{re.escape(encoder.place)}(transformer\.text_projection\.weight|logit_scale|text_projection)"
        for _, encoder in ENCODERS
    ),
)
"""Keys (regular expressions) that the model does not need; `surplus` adds OpenCLIP's last layer."""

VAE_ATTENTION_WEIGHT = re.compile(r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
QKV = ("q_proj", "k_proj", "v_proj")
OPEN_CLIP = tuple(encoder.keys for _, encoder in ENCODERS if encoder.open_clip)
"""Key prefixes of OpenCLIP's text encoders."""
JOINED = re.compile(rf"((?:{'|'.join(map(re.escape, OPEN_CLIP))}).*attn\.)([qkv]_proj)\.(weight|bias)")
"""Keys of the parts that OpenCLIP joins."""
SD2_KEYS = SD2.text_encoders["text_encoder"].keys
SD2_LAYER = rf"{re.escape(SD2_KEYS)}transformer\.resblocks\.(\d+)\."
TRANSPOSED = tuple(f"{keys}text_projection" for keys in OPEN_CLIP)
"""OpenCLIP computes `x @ text_projection`, transformers `x @ text_projection.weight.T`."""


def compvis_key_map(modules: Mapping[str, Network]) -> dict[str, dict[str, str]]:
    """`{component: {our key: their key}}` for the networks in `modules` (on any device).

    Our text-encoder keys are bare.
    """
    keys = {name: [bare_key(key) for key in module.state_dict()] for name, module in modules.items()}
    maps = {}
    if "unet" in modules:
        maps["unet"] = compvis_names.unet_names(keys["unet"], modules["unet"].config.layers_per_block)
    if "vae" in modules:
        maps["vae"] = compvis_names.vae_names(keys["vae"], len(modules["vae"].config.block_out_channels))
    texts = {name: module.config.hidden_act for name, module in modules.items() if name in TEXT_ENCODERS}
    for name, encoder in family_of(texts).text_encoders.items() if texts else ():
        maps[name] = compvis_names.text_names(keys[name], encoder)
    return maps


def from_compvis(
    tensors: Mapping[str, Tensor], key_map: Mapping[str, Mapping[str, str]], use_ema: bool
) -> dict[str, dict[str, Tensor]]:
    """The tensors of each component in `key_map` that the file has, under our keys.

    use_ema: use the UNet's moving average if the file has one.
    """
    flat = split_qkv(tensors)
    weights = {}
    averaged = use_ema and has_ema(tensors)
    for component, names in key_map.items():
        source = ema_key if averaged and component == "unet" else str
        found = {ours: flat[source(theirs)] for ours, theirs in names.items() if source(theirs) in flat}
        weights[component] = {ours: as_ours(names[ours], value) for ours, value in found.items()}
    return weights


def surplus(tensors: Mapping[str, Tensor], key_map: Mapping[str, Mapping[str, str]]) -> dict[str, list[str]]:
    """The keys that no network uses and that are not in `INERT_KEYS`, by component.

    Keys of a VAE not in `key_map` are skipped; if only the VAE is in it, all other keys. SD 2.x uses all of OpenCLIP's
    layers except the last, which is inert.
    """
    known = {theirs for names in key_map.values() for theirs in names.values()}
    known |= {ema_key(theirs) for theirs in key_map.get("unet", {}).values()}
    layers = [int(found[1]) for key in known if (found := re.match(SD2_LAYER, key))]
    last = [rf"{re.escape(SD2_KEYS)}transformer\.resblocks\.{max(layers) + 1}\..*"] if layers else []
    inert = re.compile("|".join(f"(?:{pattern})" for pattern in (*INERT_KEYS, *last)))
    # Only the keys of a replaced VAE, or all but those of a VAE read alone, may be left over.
    skipped = ({"vae"} if "unet" in key_map else PREFIXES.keys()) - key_map.keys()
    ignored = tuple(start for name in skipped for start in PREFIXES[name])
    result: dict[str, list[str]] = {}
    for key in split_qkv(tensors):
        if key not in known and not inert.fullmatch(key) and not key.startswith(ignored):
            result.setdefault(component_of(key), []).append(key)
    return result


def component_of(key: str) -> str:
    """The component of a single file's key, or "other"."""
    return next((name for name, starts in PREFIXES.items() if key.startswith(starts)), "other")


def to_compvis(modules: Mapping[str, Network]) -> dict[str, Tensor]:
    """All tensors of `modules` as one CompVis state dict."""
    tensors = {}
    for component, names in compvis_key_map(modules).items():
        for key, value in bare_state(modules[component]).items():
            theirs = names[key]
            tensors[theirs] = as_theirs(theirs, value)
    return join_qkv(tensors)


def has_ema(tensors: Iterable[str]) -> bool:
    """Whether the file has a moving average of the UNet beside its weights."""
    return any(key.startswith("model_ema.diffusion_model") for key in tensors)


def ema_key(key: str) -> str:
    """The key of a UNet weight's moving average: CompVis removes the dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def with_text_model(key: str) -> str:
    """`key` with the `text_model.` that files written by transformers 5 lack."""
    for prefix in (encoder.keys for _, encoder in ENCODERS if not encoder.open_clip):
        start = prefix.removesuffix("text_model.")
        rest = key.removeprefix(start)
        if key.startswith(start) and rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            return prefix + rest
    return key


def as_ours(key: str, value: Tensor) -> Tensor:
    """Their tensor as ours: 1 x 1 convolutions of the VAE's attention as matrices, OpenCLIP's projection transposed."""
    if key in TRANSPOSED and value.ndim == 2:
        return value.T.contiguous()
    return value.flatten(1) if VAE_ATTENTION_WEIGHT.fullmatch(key) and value.shape[2:].numel() == 1 else value


def as_theirs(key: str, value: Tensor) -> Tensor:
    """The inverse of `as_ours`."""
    if key in TRANSPOSED:
        return value.T
    return value[:, :, None, None] if VAE_ATTENTION_WEIGHT.fullmatch(key) and value.ndim == 2 else value


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenCLIP's `attn.in_proj_weight` and `_bias` as three tensors each: query, key, value."""
    result = {}
    for key, value in tensors.items():
        stem, joined, kind = key.partition("attn.in_proj_")
        if key.startswith(OPEN_CLIP) and joined and value.ndim and len(value) % 3 == 0:
            for part, third in zip(QKV, value.chunk(3), strict=True):
                result[f"{stem}attn.{part}.{kind}"] = third
        else:
            result[key] = value
    return result


def join_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `split_qkv`."""
    result = {}
    for key, value in tensors.items():
        found = JOINED.fullmatch(key)
        if not found:
            result[key] = value
        elif found[2] == QKV[0]:
            thirds = [tensors[f"{found[1]}{part}.{found[3]}"] for part in QKV]
            result[f"{found[1]}in_proj_{found[3]}"] = torch.cat(thirds)
    return result
