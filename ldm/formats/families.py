"""The model families that can be read and written here, and how to recognise others.

`diffusers_folder`, `single_file`, `network_configs` and `hub` read these tables; a new family is a row of FAMILIES,
with its component configs in `configs/`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ldm.files import PROJECT

NETWORKS = {
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
}
"""The networks of all families: folder in diffusers' layout, library and class."""

TOKENIZERS = dict.fromkeys(("tokenizer", "tokenizer_2"), ("transformers", "CLIPTokenizer"))


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder of a family: its config's activation, and its keys in a single file."""

    activation: str
    """`hidden_act` in its config, which distinguishes the families."""
    keys: str
    """Prefix of its keys in a single file."""
    open_clip: bool
    """Whether single files use OpenCLIP's layout for it; otherwise transformers'."""

    @property
    def place(self) -> str:
        """Prefix of all its possible keys in a single file, including those that the model does not need."""
        return re.sub(r"(transformer\.text_model|model)\.$", "", self.keys)


@dataclass(frozen=True, eq=False)
class Family:
    """One model family: its parts, and what distinguishes it from the others."""

    name: str
    pipeline: str
    """diffusers' pipeline class, as in `model_index.json`."""
    text_encoders: Mapping[str, TextEncoder]
    """By folder name, in the order in which their states are joined."""
    configs: Path
    """Component configs of the published size, and the tokenizers, in diffusers' layout."""
    prediction_type: str | None
    """Prediction type of single files that do not say it; None if the published models differ."""
    architecture: Mapping[str, str]
    """ModelSpec's name of the architecture, by prediction type."""
    index: Mapping[str, object]
    """Entries of `model_index.json` that are not parts."""
    unet_inputs: Mapping[str, str] = field(default_factory=dict)
    """UNet settings for inputs beside latents, timesteps and text states."""

    @property
    def networks(self) -> tuple[str, ...]:
        """The folders of its networks."""
        return "unet", "vae", *self.text_encoders

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The folders of its tokenizers, one per text encoder."""
        return tuple(tokenizer_of(name) for name in self.text_encoders)


def tokenizer_of(text_encoder: str) -> str:
    """The tokenizer's folder for a text encoder's: `tokenizer_2` for `text_encoder_2`."""
    return text_encoder.replace("text_encoder", "tokenizer")


FORCE_ZEROS = "force_zeros_for_empty_prompt"
"""The entry of `model_index.json`, in some families, that says whether an empty negative prompt means zeros."""
NO_SAFETY_CHECKER: Mapping[str, object] = {"requires_safety_checker": False, "safety_checker": [None, None]}

SD1 = Family(
    name="Stable Diffusion 1.x",
    pipeline="StableDiffusionPipeline",
    text_encoders={
        "text_encoder": TextEncoder("quick_gelu", "cond_stage_model.transformer.text_model.", open_clip=False)
    },
    configs=PROJECT / "configs" / "stable-diffusion" / "v1",
    prediction_type="epsilon",
    architecture={"epsilon": "stable-diffusion-v1", "v_prediction": "stable-diffusion-v1"},
    index=NO_SAFETY_CHECKER,
)
SD2 = Family(
    name="Stable Diffusion 2.x",
    pipeline="StableDiffusionPipeline",
    text_encoders={"text_encoder": TextEncoder("gelu", "cond_stage_model.model.", open_clip=True)},
    configs=PROJECT / "configs" / "stable-diffusion" / "v2",
    prediction_type=None,
    architecture={"epsilon": "stable-diffusion-v2-512", "v_prediction": "stable-diffusion-v2-768-v"},
    index=NO_SAFETY_CHECKER,
)
SDXL = Family(
    name="Stable Diffusion XL",
    pipeline="StableDiffusionXLPipeline",
    text_encoders={
        "text_encoder": TextEncoder(
            "quick_gelu", "conditioner.embedders.0.transformer.text_model.", open_clip=False
        ),
        "text_encoder_2": TextEncoder("gelu", "conditioner.embedders.1.model.", open_clip=True),
    },
    configs=PROJECT / "configs" / "stable-diffusion" / "xl",
    prediction_type="epsilon",
    architecture=dict.fromkeys(("epsilon", "v_prediction"), "stable-diffusion-xl-v1-base"),
    index={FORCE_ZEROS: True},  # the pipeline's default
    unet_inputs={"addition_embed_type": "text_time"},
)
FAMILIES = (SD1, SD2, SDXL)

TEXT_ENCODERS = tuple(dict.fromkeys(name for family in FAMILIES for name in family.text_encoders))
"""The folders of all families' text encoders."""

READ_HERE = f"{', '.join(family.name for family in FAMILIES[:-1])} and {FAMILIES[-1].name}"

NOT_NEEDED = ("feature_extractor", "safety_checker", "scheduler")
"""Parts that are not checked in `model_index.json`; any scheduler's config is accepted."""

OTHER_PIPELINES = {
    "StableDiffusion3": "a Stable Diffusion 3 model",
    "Flux": "a FLUX model",
    "ImageVariation": "an image variation model",
    "UnCLIP": "an unCLIP model",
    "AltDiffusion": "an AltDiffusion model",
}
"""Kinds of model with other parts, by a word in the pipeline class in `model_index.json`."""

OTHER_TEXT_ENCODERS = {frozenset({"text_encoder_2"}): "an SDXL refiner"}
"""Kinds of model by text encoders that no family has."""

OTHER_SCHEDULERS = ("EDM", "Flow")
"""Words in the names of diffusers' schedulers without betas, whose models add noise differently."""

OTHER_INPUT_CHANNELS = {
    5: "a depth model",
    7: "an upscaling model",
    8: "an editing model",
    9: "an inpainting model",
}
"""Kinds of model by input channels of the UNet, if more than the 4 of the noisy latents."""

OTHER_UNET_INPUTS = {
    "addition_embed_type": "the UNet of an unCLIP model, or of SDXL without its text encoders",
    "class_embed_type": "the UNet of an upscaling or unCLIP model",
    "num_class_embeds": "the UNet of an upscaling or class-conditional model",
    "encoder_hid_dim": "a UNet for other states than its text encoder's",
    "encoder_hid_dim_type": "a UNet for other states than its text encoder's",
    "time_cond_proj_dim": "the UNet of a consistency-distilled model",
}
"""UNet settings for more inputs than latents, timesteps and text states, and the kinds of model that have them."""

OTHER_KEYS = {
    "conditioner.embedders.": f"an SDXL refiner, or SDXL without a text encoder: give a whole model of {READ_HERE}",
    "model.diffusion_model.joint_blocks.": f"a Stable Diffusion 3 model, and only {READ_HERE} can be trained here",
    "model.diffusion_model.double_blocks.": f"a FLUX model, and only {READ_HERE} can be trained here",
    "lora_": "a LoRA, not a whole model: give the model it was trained on",
    "control_model.": "a ControlNet, not a base model",
    "string_to_param": "a textual inversion, not a whole model",
    "emb_params": "a textual inversion, not a whole model",
    "model.unet.": "a run's checkpoint: continue it with --resume, or make a base of it with scripts/export.py",
    "model.text_encoder.": "a run's checkpoint: continue it with --resume, or make a base of it with scripts/export.py",
    "down_blocks.": "a single network of a diffusers model: give the folder with model_index.json",
    "first_stage_model.": "a VAE without a UNet: give it as the vae of a base model",
    "encoder.": "a VAE without a UNet: give it as the vae of a base model",
}
"""Kinds of single files by a prefix of one of their keys, and advice; the first match counts."""


def family_of(activations: Mapping[str, str]) -> Family:
    """The family whose text encoders have these values of `hidden_act`, by name. Raises LookupError for none."""
    for family in FAMILIES:
        if {name: encoder.activation for name, encoder in family.text_encoders.items()} == activations:
            return family
    raise LookupError(f"no family with the text encoders {dict(activations)}")
