"""The JSON files of a base model: their required content, and whether they describe a model of a known family."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import ConfigDict, Field, field_validator, model_validator
from transformers import CLIPTextConfig

from ldm.errors import UserError
from ldm.formats.described import Content, described, read_json
from ldm.formats.families import (
    FAMILIES,
    FORCE_ZEROS,
    NETWORKS,
    NOT_NEEDED,
    OTHER_INPUT_CHANNELS,
    OTHER_PIPELINES,
    OTHER_SCHEDULERS,
    OTHER_TEXT_ENCODERS,
    OTHER_UNET_INPUTS,
    READ_HERE,
    TEXT_ENCODERS,
    TOKENIZERS,
    Family,
    family_of,
)
from ldm.values import Count, NonNegativeFloat, NonNegativeInt, PositiveFloat, PredictionType, Probability

ADVICE = f"give a text-to-image model of {READ_HERE}"

Layers = Annotated[int, Ge(1), Le(200)]
"""A number of layers; the bound keeps a hostile config from building a huge network."""
Widths = Annotated[list[Count], MinLen(1), MaxLen(20)]
SIZE_IDS = 6
"""Numbers that SDXL's UNet gets about an image's size and crop; the refiner's gets 5."""
Beta = Annotated[float, Gt(0), Lt(1)]


class UNetConfig(Content):
    """diffusers' `UNet2DConditionModel`. Missing settings have diffusers' defaults."""

    sample_size: Count
    in_channels: Count = 4
    out_channels: Count = 4
    block_out_channels: Widths
    layers_per_block: Layers | list[Layers] = 2
    transformer_layers_per_block: Layers | list[Layers] = 1
    attention_head_dim: Count | list[Count] = 8
    cross_attention_dim: Count | list[Count] = 1280
    norm_num_groups: Count = 32
    norm_eps: PositiveFloat = 1e-5
    mid_block_scale_factor: PositiveFloat = 1
    resnet_out_scale_factor: PositiveFloat = 1
    downsample_padding: Annotated[int, Ge(0), Le(1)] = 1
    dropout: Probability = 0
    freq_shift: NonNegativeFloat = 0
    flip_sin_to_cos: bool = True
    center_input_sample: Literal[False] = False
    upcast_attention: bool | None = False
    use_linear_projection: bool | None = False
    addition_time_embed_dim: Count | None = None
    projection_class_embeddings_input_dim: Count | None = None
    attention_type: Literal["default"] = "default"


class VaeConfig(Content):
    """diffusers' `AutoencoderKL`, with latents scaled by a single number."""

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: Count = 4
    block_out_channels: Widths
    layers_per_block: Layers = 1
    norm_num_groups: Count = 32
    scaling_factor: PositiveFloat = 0.18215
    force_upcast: bool = True
    shift_factor: Literal[0] | None = None
    latents_mean: None = None
    latents_std: None = None


class TextEncoderConfig(Content):
    """transformers' `CLIPTextConfig`."""

    vocab_size: Annotated[int, Ge(3)]
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: Layers
    projection_dim: Count = 512
    num_attention_heads: Count
    max_position_embeddings: Annotated[int, Ge(3)]
    layer_norm_eps: PositiveFloat = 1e-5
    attention_dropout: Probability = 0
    eos_token_id: NonNegativeInt = 49407
    hidden_act: str = "quick_gelu"

    @field_validator("hidden_act")
    @classmethod
    def _is_known(cls, name: str) -> str:
        known = {encoder.activation: None for family in FAMILIES for encoder in family.text_encoders.values()}
        if name not in known:
            raise ValueError(f"it must be {' or '.join(known)}")
        return name

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "TextEncoderConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of num_attention_heads"
                f" {self.num_attention_heads}"
            )
        return self


class SchedulerConfig(Content):
    """The common settings of diffusers' schedulers, and others used by the samplers here."""

    model_config = ConfigDict(extra="allow")

    class_name: Annotated[str, Field(alias="_class_name")] = "DDIMScheduler"
    num_train_timesteps: Annotated[int, Ge(2), Le(100_000)] = 1000
    beta_start: Beta = 0.0001
    beta_end: Beta = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    prediction_type: PredictionType = "epsilon"
    trained_betas: list[Beta] | None = None
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["leading", "linspace", "trailing"] = "leading"
    steps_offset: Annotated[int, Ge(0), Le(1)] = 0
    set_alpha_to_one: bool = True
    clip_sample: bool = False
    clip_sample_range: PositiveFloat = 1.0
    thresholding: Literal[False] = False
    solver_order: Annotated[int, Ge(1), Le(3)] = 2
    lower_order_final: bool = True
    use_karras_sigmas: bool | None = False
    use_flow_sigmas: Literal[False] | None = False

    @field_validator("class_name")
    @classmethod
    def _is_a_scheduler(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9]{1,60}Scheduler", name) or any(
            word in name for word in OTHER_SCHEDULERS
        ):
            raise ValueError("it must be a scheduler of diffusers with betas, such as DDIMScheduler")
        return name

    @model_validator(mode="after")
    def _betas_rise_and_suffice(self) -> "SchedulerConfig":
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is larger than beta_end {self.beta_end}")
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(
                f"trained_betas has {len(self.trained_betas)} values for {self.num_train_timesteps} timesteps"
            )
        return self


SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
"""Every scheduler config in memory has these; files may omit those with diffusers' defaults."""

PREDICTION_TYPES = {
    "epsilon": "epsilon",
    "eps": "epsilon",
    "v_prediction": "v_prediction",
    "v": "v_prediction",
}
"""Spellings of the prediction types in various tools."""

DESCRIPTIONS: dict[str, type[Content]] = {
    "UNet2DConditionModel": UNetConfig,
    "AutoencoderKL": VaeConfig,
    "CLIPTextModel": TextEncoderConfig,
    "CLIPTextModelWithProjection": TextEncoderConfig,
}
"""Descriptions of the networks' configs, by class name in NETWORKS."""
TEXT_ENCODER_KEYS = CLIPTextConfig().to_dict().keys() | {"torch_dtype"}


def read_network_configs(folder: Path, wanted: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`{component: config.json}` of the networks `wanted` in a pipeline's folder.

    Raises UserError for missing or damaged files, and for a model of another family.
    """
    configs = {name: network_config(folder / name, name) for name in wanted}
    refuse_other_networks(configs, folder)
    return configs


def network_config(folder: Path, component: str) -> dict[str, object]:
    """The `config.json` of one network."""
    config = read_json(folder / "config.json")
    description = DESCRIPTIONS[NETWORKS[component][1]]
    described(description, config, folder / "config.json")
    if description is TextEncoderConfig:
        # transformers keeps any key as an attribute; `_attn_implementation` would make it download and run code.
        return {key: value for key, value in config.items() if key in TEXT_ENCODER_KEYS}
    return config


def refuse_other_networks(configs: Mapping[str, Mapping[str, object]], source: Path) -> None:
    """Raise UserError if the UNet's inputs or widths do not fit its family, text encoders or VAE."""
    unet = described(UNetConfig, configs["unet"], source)
    texts = text_configs(configs, source)
    family = family_of_configs(configs, source)
    for key, kind in OTHER_UNET_INPUTS.items():
        if configs["unet"].get(key) not in (None, family.unet_inputs.get(key)):
            raise UserError(f"{source} has {kind} ({key}): {ADVICE}")
    for key, value in family.unet_inputs.items():
        if configs["unet"].get(key) != value:
            raise UserError(
                f"{source} has {family.name}'s text encoders, but a UNet without {key} {value}: {ADVICE}"
            )
    refuse_other_channels(unet.in_channels, unet.out_channels, source)
    if "vae" in configs:
        refuse_other_latents(described(VaeConfig, configs["vae"], source), unet, source)
    refuse_other_widths(unet, texts, source)


def text_configs(
    configs: Mapping[str, Mapping[str, object]], source: str | Path
) -> dict[str, TextEncoderConfig]:
    """The text encoders' configs among `configs`."""
    texts = {name: config for name, config in configs.items() if name in TEXT_ENCODERS}
    return {name: described(TextEncoderConfig, config, source) for name, config in texts.items()}


def family_of_configs(configs: Mapping[str, Mapping[str, Any]], source: str | Path) -> Family:
    """The family with the text encoders in `configs`. Raises UserError if there is none."""
    activations = {name: text.hidden_act for name, text in text_configs(configs, source).items()}
    try:
        return family_of(activations)
    except LookupError:
        said = ", ".join(f"{name} {activation}" for name, activation in activations.items())
        raise UserError(
            f"{source}: no known model has text encoders with these activations ({said}): {ADVICE}"
        ) from None


def refuse_other_widths(unet: UNetConfig, texts: Mapping[str, TextEncoderConfig], source: str | Path) -> None:
    """Raise UserError if the UNet expects text states or a pooled text of another width."""
    width = sum(text.hidden_size for text in texts.values())  # their states are joined
    widths = unet.cross_attention_dim
    if any(w != width for w in (widths if isinstance(widths, list) else [widths])):
        raise UserError(
            f"{source}: its UNet expects text states of width {widths}, but its text encoder"
            f"{'s give' if len(texts) > 1 else ' gives'} {width}: {ADVICE}"
        )
    if unet.projection_class_embeddings_input_dim is not None:
        wanted = unet.projection_class_embeddings_input_dim - SIZE_IDS * (unet.addition_time_embed_dim or 0)
        pooled = list(texts.values())[-1].projection_dim
        if wanted != pooled:
            raise UserError(
                f"{source}: its UNet expects {SIZE_IDS} sizes and a pooled text of width {wanted}, but its text encoder"
                f" gives {pooled}: {ADVICE}"
            )


def refuse_other_latents(vae: Any, unet: Any, source: str | Path) -> None:
    """Raise UserError if UNet and VAE (given as configs) have different numbers of latent channels."""
    if vae.latent_channels != unet.in_channels:
        raise UserError(
            f"{source}: the VAE's latents have {vae.latent_channels} channels, but the UNet expects"
            f" {unet.in_channels}: give the VAE that the UNet was trained on"
        )


def refuse_other_channels(inputs: int, outputs: int, source: Path) -> None:
    """Raise UserError for inpainting, depth, editing and upscaling models, which have more input channels."""
    if inputs != outputs:
        kind = OTHER_INPUT_CHANNELS.get(inputs, "a model")
        raise UserError(f"{source} is {kind} with {inputs} input channels: {ADVICE}")


def networks_of(folder: Path) -> tuple[str, ...]:
    """The networks that a pipeline's folder must have, by the text encoders that it lists or has."""
    index = folder / "model_index.json"
    listed = read_json(index) if index.is_file() else {}
    parts = {name for name, entry in listed.items() if isinstance(entry, list) and any(entry)}
    present = frozenset(
        name for name in TEXT_ENCODERS if (name in parts if listed else (folder / name).is_dir())
    )
    if present in OTHER_TEXT_ENCODERS:
        raise UserError(f"{folder} is {OTHER_TEXT_ENCODERS[present]}: {ADVICE}")
    complete = (family.networks for family in FAMILIES if present == family.text_encoders.keys())
    return next(complete, FAMILIES[0].networks)


def zero_unconditional(folder: Path, family: Family) -> bool:
    """Whether a pipeline's folder says that an empty negative prompt means zeros; only SDXL's can."""
    default = family.index.get(FORCE_ZEROS, False)
    index = folder / "model_index.json"
    said = read_json(index).get(FORCE_ZEROS, default) if index.is_file() else default
    if not isinstance(said, bool):
        raise UserError(f"{index}: {FORCE_ZEROS} is {said!r}: it must be true or false")
    return said and FORCE_ZEROS in family.index


def refuse_other_models(folder: Path) -> None:
    """Raise UserError if the small files of a pipeline's folder show a model of another family."""
    if (folder / "model_index.json").is_file():
        refuse_other_pipelines(folder)
        read_network_configs(folder, networks_of(folder))


def refuse_other_pipelines(folder: Path) -> None:
    """Raise UserError if a folder's `model_index.json`, if any, lists unknown parts."""
    if not (folder / "model_index.json").is_file():
        return
    index = read_json(folder / "model_index.json")
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and any(entry)}
    known = {**NETWORKS, **TOKENIZERS}
    for name, (_, *classes) in parts.items():
        expected = known[name][1] if name in known else None
        if name in NOT_NEEDED or (expected and classes in ([expected], [f"{expected}Fast"])):
            continue
        pipeline = str(index.get("_class_name"))
        kind = next((kind for word, kind in OTHER_PIPELINES.items() if word in pipeline), f"a {pipeline}")
        raise UserError(
            f"{folder} is {kind} (its {name} is of class {', '.join(map(str, classes))}): {ADVICE}"
        )


def spelt_prediction_type(said: str, source: str | Path) -> str:
    """A `PredictionType` from any tool's spelling. Raises UserError for anything else."""
    if said not in PREDICTION_TYPES:
        raise UserError(f"{source}: unknown prediction type {said!r}: epsilon or v_prediction")
    return PREDICTION_TYPES[said]


def read_scheduler_config(folder: Path) -> dict[str, Any]:
    """`scheduler/scheduler_config.json` as plain values, with `SCHEDULE_KEYS` filled in."""
    path = folder / "scheduler" / "scheduler_config.json"
    content = read_json(path)
    config = described(SchedulerConfig, content, path)
    return {**{key: getattr(config, key) for key in SCHEDULE_KEYS}, **content}
