"""The families of models that can be read and written here, and how to recognise others.

Data, and how a family is found in it. `diffusers_folder`, `single_file`, `network_configs` and `hub` read these
tables; a new family is a row of FAMILIES, with its component configs in `configs/`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
    """One text encoder of a family: what its config says, and where a single file has it."""

    activation: str
    """`hidden_act` in its config, which distinguishes the families."""
    keys: str
    """What its keys begin with in a single file."""
    open_clip: bool
    """Whether a single file has it in OpenCLIP's layout; in transformers' otherwise."""

    @property
    def place(self) -> str:
        """What all keys begin with that a single file may have of it, those that no model needs included."""
        return re.sub(r"(transformer\.text_model|model)\.$", "", self.keys)


@dataclass(frozen=True, eq=False)
class Family:
    """One kind of model: its parts, and what distinguishes it from the others."""

    name: str
    pipeline: str
    """diffusers' class, as `model_index.json` names it."""
    text_encoders: Mapping[str, TextEncoder]
    """By the names of their folders, in the order that their states are joined."""
    configs: Path
    """Component configs of the published size, and the tokenizers, in diffusers' layout."""
    prediction_type: str | None
    """Prediction type of a single file that names none; None where the published models differ."""
    architecture: Mapping[str, str]
    """ModelSpec's name of the architecture, by prediction type."""
    index: Mapping[str, Any]
    """Entries of `model_index.json` that are no parts."""
    unet_inputs: Mapping[str, str] = field(default_factory=dict)
    """Settings of the UNet that mean inputs beside latents, timesteps and text states."""

    @property
    def networks(self) -> tuple[str, ...]:
        """The folders of its networks."""
        return "unet", "vae", *self.text_encoders

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """The folders of its tokenizers, one for each text encoder."""
        return tuple(tokenizer_of(name) for name in self.text_encoders)


def tokenizer_of(text_encoder: str) -> str:
    """The tokenizer's folder for a text encoder's: `tokenizer_2` for `text_encoder_2`."""
    return text_encoder.replace("text_encoder", "tokenizer")


FORCE_ZEROS = "force_zeros_for_empty_prompt"
"""The entry of `model_index.json` that says whether an empty negative prompt is zeros, where a family has it."""
NO_SAFETY_CHECKER: Mapping[str, Any] = {"requires_safety_checker": False, "safety_checker": [None, None]}

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
"""Parts of a pipeline that are not checked in `model_index.json`: any scheduler's config will do."""

OTHER_PIPELINES = {
    "StableDiffusion3": "a Stable Diffusion 3 model",
    "Flux": "a FLUX model",
    "ImageVariation": "an image variation model",
    "UnCLIP": "an unCLIP model",
    "AltDiffusion": "an AltDiffusion model",
}
"""What a folder with other parts is, by a word in the pipeline class that its `model_index.json` names."""

OTHER_TEXT_ENCODERS = {frozenset({"text_encoder_2"}): "an SDXL refiner"}
"""What a folder is, by the text encoders that it has, where no family has just these."""

OTHER_SCHEDULERS = ("EDM", "Flow")
"""Words in the names of diffusers' schedulers that have no betas, whose models noise differently."""

OTHER_INPUT_CHANNELS = {
    5: "a depth model",
    7: "an upscaling model",
    8: "an editing model",
    9: "an inpainting model",
}
"""What a UNet is that takes more channels than the 4 of the noisy latents."""

OTHER_UNET_INPUTS = {
    "addition_embed_type": "the UNet of an unCLIP model, or of SDXL without its text encoders",
    "class_embed_type": "the UNet of an upscaling or unCLIP model",
    "num_class_embeds": "the UNet of an upscaling or class-conditional model",
    "encoder_hid_dim": "a UNet that reads other states than its text encoder's",
    "encoder_hid_dim_type": "a UNet that reads other states than its text encoder's",
    "time_cond_proj_dim": "the UNet of a consistency-distilled model",
}
"""UNet settings that mean more inputs than latents, timesteps and text states, and what such a UNet is."""

OTHER_KEYS = {
    "conditioner.embedders.": f"an SDXL refiner, or SDXL without a text encoder: give a whole model of {READ_HERE}",
    "model.diffusion_model.joint_blocks.": f"a Stable Diffusion 3 model, and only {READ_HERE} can be trained here",
    "model.diffusion_model.double_blocks.": f"a FLUX model, and only {READ_HERE} can be trained here",
    "lora_": "a LoRA, not a whole model: give the model that it was trained on",
    "control_model.": "a ControlNet, not a base model",
    "string_to_param": "a textual inversion, not a whole model",
    "emb_params": "a textual inversion, not a whole model",
    "model.unet.": "a run's checkpoint: --resume goes on with it, and scripts/export.py makes a base of it",
    "model.text_encoder.": "a run's checkpoint: --resume goes on with it, scripts/export.py makes a base of it",
    "down_blocks.": "a single network of a diffusers model: give the folder that holds model_index.json",
    "first_stage_model.": "a VAE without a UNet: give it as the vae of a base model",
    "encoder.": "a VAE without a UNet: give it as the vae of a base model",
}
"""What a single file without a UNet is, by the beginning of one of its keys; the first match counts."""


def family_of(activations: Mapping[str, str]) -> Family:
    """The family whose text encoders have these values of `hidden_act`, by name. Raises LookupError for none."""
    for family in FAMILIES:
        if {name: encoder.activation for name, encoder in family.text_encoders.items()} == activations:
            return family
    raise LookupError(f"no family with the text encoders {dict(activations)}")
