"""Converts tensors between CompVis' single files and the networks' own state dicts; reads no file.

Besides the names (`compvis_names`) three layouts differ: CompVis has four 1 x 1 convolutions for the VAE's
attention and diffusers four linear layers; OpenCLIP joins query, key and value into one matrix, and multiplies by its
text projection from the other side.
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
"""The text encoders of all families, with the names of their folders."""
PREFIXES = {
    "unet": (UNET_PREFIX, "model_ema."),
    "vae": (VAE_PREFIX,),
    **{name: tuple({e.place for own, e in ENCODERS if own == name}) for name in TEXT_ENCODERS},
}
"""What a component's keys begin with in a single file of any family."""

INERT_KEYS = (
    # The noise schedule, which the scheduler config states.
    r"betas|(sqrt_)?alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recipm?1?_alphas_cumprod",
    r"posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor",
    # Counters of the moving average; the VAE's training losses and its own moving average.
    r"model_ema\.(decay|num_updates)|first_stage_model\.(loss|model_ema)\..*|v_pred|ztsnr|denoiser\.sigmas",
    # The numbers 0, 1, ..., 76, and CLIP's projections, which most text encoders here do not use.
    *(
        rf"{re.escape(encoder.keys)}(text_projection|logit_scale|attn_mask)"
        if encoder.open_clip
        else rf"{re.escape(encoder.keys)}embeddings\.position_ids|"
        rf"{re.escape(encoder.place)}(transformer\.text_projection\.weight|logit_scale|text_projection)"
        for _, encoder in ENCODERS
    ),
)
"""Keys (regular expressions) that carry nothing the model needs; `surplus` adds OpenCLIP's last layer."""

VAE_ATTENTION_WEIGHT = re.compile(r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight")
QKV = ("q_proj", "k_proj", "v_proj")
OPEN_CLIP = tuple(encoder.keys for _, encoder in ENCODERS if encoder.open_clip)
"""What the keys of OpenCLIP's text encoders begin with."""
JOINED = re.compile(rf"((?:{'|'.join(map(re.escape, OPEN_CLIP))}).*attn\.)([qkv]_proj)\.(weight|bias)")
"""Parts of what OpenCLIP joins."""
SD2_KEYS = SD2.text_encoders["text_encoder"].keys
SD2_LAYER = rf"{re.escape(SD2_KEYS)}transformer\.resblocks\.(\d+)\."
TRANSPOSED = tuple(f"{keys}text_projection" for keys in OPEN_CLIP)
"""OpenCLIP computes `x @ text_projection`, transformers `x @ text_projection.weight.T`."""


def compvis_key_map(modules: Mapping[str, Network]) -> dict[str, dict[str, str]]:
    """`{component: {our key: their key}}` for the networks in `modules` (on any device).

    Text-encoder keys are bare on our side.
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
    """The tensors of each component in `key_map` under our keys, as far as the file has them.

    use_ema: take the UNet's moving average where the file has one.
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
    """The keys that no network takes and `INERT_KEYS` does not name, by component.

    A VAE outside of `key_map` is skipped, and all but the VAE where that alone is read. SD 2.x uses all of
    OpenCLIP's layers but the last, which is inert.
    """
    known = {theirs for names in key_map.values() for theirs in names.values()}
    known |= {ema_key(theirs) for theirs in key_map.get("unet", {}).values()}
    layers = [int(found[1]) for key in known if (found := re.match(SD2_LAYER, key))]
    last = [rf"{re.escape(SD2_KEYS)}transformer\.resblocks\.{max(layers) + 1}\..*"] if layers else []
    inert = re.compile("|".join(f"(?:{pattern})" for pattern in (*INERT_KEYS, *last)))
    # Besides a VAE that another replaces, or all but a VAE that is read alone, nothing may be left.
    skipped = ({"vae"} if "unet" in key_map else PREFIXES.keys()) - key_map.keys()
    ignored = tuple(start for name in skipped for start in PREFIXES[name])
    result: dict[str, list[str]] = {}
    for key in split_qkv(tensors):
        if key not in known and not inert.fullmatch(key) and not key.startswith(ignored):
            result.setdefault(component_of(key), []).append(key)
    return result


def component_of(key: str) -> str:
    """The component that a single file's key belongs to, or "other"."""
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
    """Whether the file holds a moving average of the UNet beside its weights."""
    return any(key.startswith("model_ema.diffusion_model") for key in tensors)


def ema_key(key: str) -> str:
    """The name of a UNet key's moving average: CompVis drops the dots."""
    return "model_ema." + key.removeprefix("model.").replace(".", "")


def with_text_model(key: str) -> str:
    """Files written by transformers 5 lack the `text_model.` that all others have."""
    for prefix in (encoder.keys for _, encoder in ENCODERS if not encoder.open_clip):
        start = prefix.removesuffix("text_model.")
        rest = key.removeprefix(start)
        if key.startswith(start) and rest.startswith(("embeddings.", "encoder.", "final_layer_norm.")):
            return prefix + rest
    return key


def as_ours(key: str, value: Tensor) -> Tensor:
    """Their tensor as ours: the VAE's 1 x 1 convolutions of attention as matrices, OpenCLIP's projection transposed."""
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
