"""Full-size Stable Diffusion 1.x, 2.x and XL on the meta device: every key and every shape, without memory."""

import re

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)

from ldm.formats.compvis_layout import compvis_key_map, from_compvis, surplus, to_compvis
from ldm.formats.compvis_names import openclip_name, unet_name, vae_name
from ldm.formats.described import read_json
from ldm.formats.families import SD1, SD2, SDXL
from ldm.formats.modules import bare_key, bare_state, empty_module, misfit
from tests.small_sd import CONFIGS

PARAMETERS = {
    "v1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "v2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "xl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
}
"""As published for SD 1.5, 2.1 and XL 1.0."""

PUBLISHED = {
    "v1": {
        "model.diffusion_model.time_embed.2.weight": [1280, 1280],
        "model.diffusion_model.input_blocks.0.0.weight": [320, 4, 3, 3],
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": [320, 320, 1, 1],
        "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
        "model.diffusion_model.input_blocks.3.0.op.weight": [320, 320, 3, 3],
        "model.diffusion_model.input_blocks.4.0.skip_connection.weight": [640, 320, 1, 1],
        "model.diffusion_model.input_blocks.11.0.out_layers.3.weight": [1280, 1280, 3, 3],
        "model.diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj.weight": [10240, 1280],
        "model.diffusion_model.middle_block.2.emb_layers.1.weight": [1280, 1280],
        "model.diffusion_model.output_blocks.2.1.conv.weight": [1280, 1280, 3, 3],
        "model.diffusion_model.output_blocks.5.2.conv.weight": [1280, 1280, 3, 3],
        "model.diffusion_model.output_blocks.8.2.conv.weight": [640, 640, 3, 3],
        "model.diffusion_model.output_blocks.11.0.in_layers.0.weight": [640],
        "model.diffusion_model.out.2.weight": [4, 320, 3, 3],
        "first_stage_model.encoder.down.2.downsample.conv.weight": [512, 512, 3, 3],
        "first_stage_model.encoder.down.1.block.0.nin_shortcut.weight": [256, 128, 1, 1],
        "first_stage_model.encoder.mid.attn_1.q.weight": [512, 512, 1, 1],
        "first_stage_model.encoder.norm_out.weight": [512],
        "first_stage_model.decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
        "first_stage_model.decoder.up.0.block.2.conv2.weight": [128, 128, 3, 3],
        "first_stage_model.decoder.mid.block_2.norm1.weight": [512],
        "first_stage_model.post_quant_conv.weight": [4, 4, 1, 1],
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": [49408, 768],
        "cond_stage_model.transformer.text_model.encoder.layers.11.mlp.fc1.weight": [3072, 768],
    },
    "v2": {
        "model.diffusion_model.input_blocks.1.1.proj_in.weight": [320, 320],
        "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.attn2.to_v.weight": [320, 1024],
        "first_stage_model.decoder.mid.attn_1.proj_out.weight": [512, 512, 1, 1],
        "cond_stage_model.model.positional_embedding": [77, 1024],
        "cond_stage_model.model.token_embedding.weight": [49408, 1024],
        "cond_stage_model.model.ln_final.bias": [1024],
        "cond_stage_model.model.transformer.resblocks.22.attn.in_proj_weight": [3072, 1024],
        "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias": [3072],
        "cond_stage_model.model.transformer.resblocks.0.attn.out_proj.weight": [1024, 1024],
        "cond_stage_model.model.transformer.resblocks.7.mlp.c_fc.weight": [4096, 1024],
        "cond_stage_model.model.transformer.resblocks.7.ln_2.weight": [1024],
    },
    "xl": {
        "model.diffusion_model.label_emb.0.0.weight": [1280, 2816],
        "model.diffusion_model.label_emb.0.2.bias": [1280],
        "model.diffusion_model.input_blocks.3.0.op.weight": [320, 320, 3, 3],
        "model.diffusion_model.input_blocks.4.1.transformer_blocks.1.attn2.to_k.weight": [640, 2048],
        "model.diffusion_model.input_blocks.8.1.transformer_blocks.9.attn1.to_q.weight": [1280, 1280],
        "model.diffusion_model.middle_block.1.transformer_blocks.9.attn2.to_v.weight": [1280, 2048],
        "model.diffusion_model.output_blocks.2.2.conv.weight": [1280, 1280, 3, 3],
        "model.diffusion_model.output_blocks.5.2.conv.weight": [640, 640, 3, 3],
        "model.diffusion_model.output_blocks.8.0.skip_connection.weight": [320, 640, 1, 1],
        "first_stage_model.decoder.up.3.upsample.conv.weight": [512, 512, 3, 3],
        "conditioner.embedders.0.transformer.text_model.encoder.layers.11.mlp.fc1.weight": [3072, 768],
        "conditioner.embedders.1.model.transformer.resblocks.31.attn.in_proj_weight": [3840, 1280],
        "conditioner.embedders.1.model.positional_embedding": [77, 1280],
        "conditioner.embedders.1.model.text_projection": [1280, 1280],
    },
}
"""Some keys of the published files with their shapes, of every kind that the naming distinguishes."""

INERT = [
    *(
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
    ),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *("model_ema.decay", "model_ema.num_updates", "scale_factor", "logvar"),
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.model.text_projection",
    "cond_stage_model.model.logit_scale",
    "cond_stage_model.model.transformer.resblocks.23.attn.in_proj_weight",
    "cond_stage_model.model.transformer.resblocks.23.mlp.c_proj.bias",
]
"""Keys of the published files that no network takes."""


@pytest.fixture(params=["v1", "v2", "xl"], scope="module")
def version(request):
    return request.param


@pytest.fixture(scope="module")
def configs(version):
    names = {"v1": SD1, "v2": SD2, "xl": SDXL}[version].networks
    return {name: read_json(CONFIGS / version / name / "config.json") for name in names}


@pytest.fixture(scope="module")
def networks(configs):
    return {name: empty_module(name, config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def tensors(networks):
    """A whole single file on the meta device."""
    return to_compvis(networks)


def shapes(tensors):
    return {key: list(value.shape) for key, value in tensors.items()}


def test_sizes_are_those_published(version, networks):
    counts = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    assert counts == PARAMETERS[version]


def test_names_and_shapes_are_those_published(version, tensors):
    written = shapes(tensors)
    assert {key: written.get(key) for key in PUBLISHED[version]} == PUBLISHED[version]
    open_clip = {"v2": 23, "xl": 32}.get(version, 0)  # its layers, of 12 tensors each
    count = (1680 if version == "xl" else 686) + 248 + (196 if version != "v2" else 0)
    assert len(written) == count + (12 * open_clip + {"v2": 4, "xl": 5}.get(version, 0))


def test_every_key_goes_out_and_comes_back(version, networks, tensors):
    key_map = compvis_key_map(networks)
    for name, names in key_map.items():
        assert len(set(names.values())) == len(names), name
    weights = from_compvis(tensors, key_map, use_ema=True)
    for name, network in networks.items():
        assert misfit(bare_state(network), weights[name]) == "", name
    assert surplus(tensors, key_map) == {}


def test_diffusers_converts_the_written_names_to_the_same_keys_and_shapes(
    version, configs, networks, tensors
):
    assert shapes(convert_ldm_unet_checkpoint(dict(tensors), configs["unet"])) == shapes(
        networks["unet"].state_dict()
    )
    assert shapes(convert_ldm_vae_checkpoint(dict(tensors), configs["vae"])) == shapes(
        networks["vae"].state_dict()
    )
    encoders = {name: network for name, network in networks.items() if name.startswith("text_encoder")}
    for name, text_encoder in encoders.items():
        if version != "v2" and name == "text_encoder":
            converted = convert_ldm_clip_checkpoint(dict(tensors))
        else:
            prefix = {"v2": "cond_stage_model.model.", "xl": "conditioner.embedders.1.model."}[version]
            converted = convert_open_clip_checkpoint(text_encoder, dict(tensors), prefix)
        assert shapes({bare_key(key): value for key, value in converted.items()}) == shapes(
            bare_state(text_encoder)
        )


def test_inert_keys_are_known_and_all_others_are_left_over(version, networks):
    key_map = compvis_key_map(networks)
    strange = {
        "unet": [
            "model.diffusion_model.input_blocks.12.0.weight",
            "model_ema.diffusion_modelin_blocks00weight",
        ],
        "vae": ["first_stage_model.encoder.extra.weight"],
        "text_encoder": ["cond_stage_model.transformer.text_model.extra", "conditioner.embedders.0.extra"],
        "text_encoder_2": ["conditioner.embedders.1.model.extra"],
        "other": ["embedding_manager.weight"],
    }
    keys = [*INERT, *(key for keys in strange.values() for key in keys)]
    tensors = {key: torch.empty(3, device="meta") for key in keys}
    tensors = {k: v for k, v in tensors.items() if version == "v2" or ".resblocks." not in k}
    assert surplus(tensors, key_map) == strange


def test_no_two_kinds_of_key_share_a_name():
    assert (
        unet_name("up_blocks.1.upsamplers.0.conv.bias", 2, {"up_blocks.1"}) == "output_blocks.5.2.conv.bias"
    )
    assert unet_name("up_blocks.0.upsamplers.0.conv.bias", 2, set()) == "output_blocks.2.1.conv.bias"
    assert unet_name("mid_block.resnets.1.norm1.bias", 2, set()) == "middle_block.2.in_layers.0.bias"
    assert vae_name("decoder.up_blocks.0.resnets.2.conv1.bias", 4) == "decoder.up.3.block.2.conv1.bias"
    assert openclip_name("encoder.layers.3.mlp.fc2.bias") == "transformer.resblocks.3.mlp.c_proj.bias"


def test_the_tokenizers_are_clips(version):
    for folder in (CONFIGS / version).glob("tokenizer*"):
        assert_clips(folder)


def assert_clips(folder):
    vocabulary = read_json(folder / "vocab.json")
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert len(vocabulary) == 49408
    assert sorted(vocabulary.values()) == list(range(49408))
    assert merges[0].startswith("#version")
    assert len(merges) == 1 + 49408 - 512 - 2
    assert all(re.fullmatch(r"\S+ \S+", merge) for merge in merges[1:])
    known = {
        "a</w>": 320,
        "photo</w>": 1125,
        "of</w>": 539,
        "dog</w>": 1929,
        "cat</w>": 2368,
        "sks</w>": 48136,
    }
    assert {word: vocabulary[word] for word in known} == known
    assert vocabulary["<|startoftext|>"] == 49406
    assert vocabulary["<|endoftext|>"] == 49407
    for name in ("vocab.json", "merges.txt"):
        assert (folder / name).read_bytes() == (CONFIGS / "v1" / "tokenizer" / name).read_bytes()
