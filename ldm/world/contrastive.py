"""Training a small CLIP, which maps pictures and captions to one space, to evaluate the embedded base."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

from ldm.files import find, replacing_folder
from ldm.formats.diffusers_folder import read_tokenizer
from ldm.values import (
    Count,
    KeywordsOf,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Seed,
    Text,
    Unaffecting,
)
from ldm.world.from_scratch import keyed_weights, settings_of, update_average, warm_stable_decay


@dataclass(frozen=True)
class ClipSettings:
    """Keywords of transformers' `CLIPConfig`."""

    projection_dim: Count
    text_config: Annotated[dict, KeywordsOf("transformers.CLIPTextConfig")]
    vision_config: Annotated[dict, KeywordsOf("transformers.CLIPVisionConfig")]


class ContrastivePretraining(pl.LightningModule):
    """Learns a `CLIPModel` by matching captions with pictures (Radford et al., arXiv 2103.00020).

    tokenizer: folder. average_decay: of the moving average of the weights, which is exported.
    """

    def __init__(
        self,
        tokenizer: Text,
        network: ClipSettings,
        learning_rate: PositiveFloat = 1e-3,
        total_steps: Annotated[Count, Unaffecting] = 2000,
        warmup_steps: NonNegativeInt = 100,
        decay_steps: Annotated[NonNegativeInt, Unaffecting] = 1000,
        weight_decay: NonNegativeFloat = 0.1,
        average_decay: Probability = 0.99,
        seed: Seed = 0,
    ):
        super().__init__()
        self.folder = find(tokenizer)
        with keyed_weights(seed, "clip"), settings_of("network"):
            self.model = CLIPModel(CLIPConfig(**asdict(network)))
        self.tokenizer = read_tokenizer(self.folder, self.model.config.text_config.vocab_size)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.learning_rate, self.weight_decay, self.average_decay = learning_rate, weight_decay, average_decay
        self.steps = (warmup_steps, total_steps, decay_steps)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """batch: `pixels` [B, 3, S, S] in [-1, 1] and `caption`, B texts."""
        words = self.tokenizer(batch["caption"], padding=True, return_tensors="pt").to(self.device)
        output = self.model(
            input_ids=words.input_ids, attention_mask=words.attention_mask, pixel_values=batch["pixels"]
        )
        return contrastive_loss(output.logits_per_image.float(), batch["caption"])

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        with torch.no_grad():  # the paper's bound on the temperature, 1 / 100
            self.model.logit_scale.clamp_(max=4.6052)
        update_average(self.average, self.model, self.average_decay, self.global_step)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(
            self.model.parameters(), self.learning_rate, (0.9, 0.98), weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_stable_decay(step, *self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, run: Path) -> str:
        """Write the averaged network, its tokenizer and preprocessing to `run/clip`; returns a message for the user."""
        side = self.model.config.vision_config.image_size
        with replacing_folder(run / "clip") as folder:
            copy.deepcopy(self.average).half().save_pretrained(folder)
            for path in self.folder.iterdir():
                (folder / path.name).write_bytes(path.read_bytes())
            write_preprocessing(folder, "CLIPImageProcessor", side)
        return (
            f"done: {run / 'clip'} holds the CLIP; judge it: scripts/judge_features.py --clip {run / 'clip'}"
        )


def contrastive_loss(logits: Tensor, captions: Sequence[str]) -> Tensor:
    """Symmetric cross-entropy of logits [B, B] (pictures by texts); equal captions count as equally correct.

    In a small world, some captions occur twice in a batch.
    """
    place = {caption: index for index, caption in enumerate(captions)}
    label = torch.tensor([place[caption] for caption in captions], device=logits.device)
    same = (label[:, None] == label[None, :]).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def write_preprocessing(folder: Path, kind: str, side: int) -> None:
    """The `preprocessor_config.json` of a network trained on pixels in [-1, 1], `side` px."""
    config = {
        "image_processor_type": kind,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_center_crop": False,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config, indent=1) + "\n")
