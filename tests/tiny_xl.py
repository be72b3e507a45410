"""A base in Stable Diffusion XL's layout small enough for tests, written by diffusers' own pipeline."""

import json
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ldm.formats.described import read_json
from tests.tiny import SIDE, TOKENIZER, tiny_vae

POOLED = 20
"""Width of the pooled text."""


def tiny_xl(folder: Path, seed: int = 0) -> Path:
    """Write a base of the same parts as SDXL, a few thousand weights, 32 x 32 px; returns `folder`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = StableDiffusionXLPipeline(
            vae=tiny_vae(),
            text_encoder=CLIPTextModel(text_config(16, "quick_gelu")),
            text_encoder_2=CLIPTextModelWithProjection(text_config(24, "gelu", projection_dim=POOLED)),
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER),
            tokenizer_2=CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!"),
            unet=tiny_unet(),
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                steps_offset=1,
                timestep_spacing="leading",
            ),
        )
        for module in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
            for parameter in module.parameters():  # so that text and sizes show in the pictures
                parameter.data.add_(0.05 * torch.randn_like(parameter))
    pipe.save_pretrained(folder)
    path = folder / "scheduler" / "scheduler_config.json"
    as_published = {"set_alpha_to_one": False, "clip_sample": False}
    path.write_text(json.dumps({**read_json(path), **as_published}))
    return folder


def tiny_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        transformer_layers_per_block=(1, 2, 3),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16 + 24,
        attention_head_dim=(1, 2, 2),
        norm_num_groups=4,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
    )


def text_config(width: int, activation: str, **options) -> CLIPTextConfig:
    vocabulary = read_json(TOKENIZER / "vocab.json")
    return CLIPTextConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=32,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act=activation,
        bos_token_id=vocabulary["<|startoftext|>"],
        eos_token_id=vocabulary["<|endoftext|>"],
        pad_token_id=vocabulary["<|endoftext|>"],
        **options,
    )
