"""Feature networks small enough for tests: a random CLIP and a random ViT in transformers' layout."""

import json
import shutil
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

from tests.tiny import SIDE, TOKENIZER

PREPROCESSING = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
    "resample": 3,
}


def tiny_features(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write `folder/clip` and `folder/dino`; returns the two. Equal seeds give equal weights."""
    vocabulary = json.loads((TOKENIZER / "vocab.json").read_text(encoding="utf-8"))
    end = vocabulary["<|endoftext|>"]
    network = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    picture = {"image_size": SIDE, "patch_size": 8}
    text = {
        "vocab_size": len(vocabulary),
        "max_position_embeddings": 32,
        "bos_token_id": vocabulary["<|startoftext|>"],
        "eos_token_id": end,
        "pad_token_id": end,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = CLIPConfig(
            text_config={**network, **text}, vision_config={**network, **picture}, projection_dim=16
        )
        CLIPModel(config).save_pretrained(folder / "clip")
        ViTModel(ViTConfig(**network, **picture), add_pooling_layer=False).save_pretrained(folder / "dino")
    shutil.copytree(TOKENIZER, folder / "clip", dirs_exist_ok=True)
    side = {"height": SIDE, "width": SIDE}
    write_preprocessing(folder / "clip", size={"shortest_edge": SIDE}, do_center_crop=True, crop_size=side)
    write_preprocessing(folder / "dino", size=side)
    return folder / "clip", folder / "dino"


def write_preprocessing(folder: Path, **settings) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({**PREPROCESSING, **settings}))
