"""Training a small ViT without labels, as in DINO, to evaluate the embedded base."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ldm.files import replacing_folder
from ldm.values import (
    Count,
    KeywordsOf,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    Probability,
    Seed,
    Unaffecting,
)
from ldm.world.contrastive import write_preprocessing
from ldm.world.from_scratch import keyed_weights, settings_of, update_average, warm_stable_decay


class Head(nn.Module):
    """Features [B, D] to scores of K prototypes, [B, K]: cosines, so that a prototype's norm does not matter."""

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.layers(features), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class SelfDistillation(pl.LightningModule):
    """A student learns its own moving average's outputs for another view (Caron et al., arXiv 2104.14294).

    network: keywords of `ViTConfig`. The teacher's outputs are balanced over each batch by Sinkhorn-Knopp
    iterations (Caron et al., arXiv 2006.09882, section 3.1): with the first paper's running centre, a network this
    small oscillated between one prototype for all pictures and a uniform distribution.
    """

    def __init__(
        self,
        network: Annotated[dict, KeywordsOf("transformers.ViTConfig")],
        prototypes: Count = 512,
        hidden: Count = 512,
        bottleneck: Count = 128,
        student_temperature: PositiveFloat = 0.1,
        teacher_temperature: PositiveFloat = 0.05,
        teacher_momentum: Probability = 0.99,
        learning_rate: PositiveFloat = 1e-3,
        total_steps: Annotated[Count, Unaffecting] = 4000,
        warmup_steps: NonNegativeInt = 200,
        decay_steps: Annotated[NonNegativeInt, Unaffecting] = 2000,
        weight_decay: NonNegativeFloat = 0.05,
        seed: Seed = 0,
    ):
        super().__init__()
        with keyed_weights(seed, "dino"), settings_of("network"):
            vit = ViTModel(ViTConfig(**network), add_pooling_layer=False)
            head = Head(network["hidden_size"], hidden, bottleneck, prototypes)
        self.student = nn.ModuleDict({"vit": vit, "head": head})
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.temperatures = (student_temperature, teacher_temperature)
        self.teacher_momentum = teacher_momentum
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.steps = (warmup_steps, total_steps, decay_steps)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """batch: `large` [B, G, 3, S, S] and `small` [B, L, 3, s, s], views in [-1, 1] of B drawings."""
        with torch.no_grad():
            seen = self.scores(self.teacher, batch["large"])
            answers = balanced(rearrange(seen, "b v k -> (b v) k"), self.temperatures[1])
            answers = rearrange(answers, "(b v) k -> b v k", v=seen.shape[1])
        large = self.scores(self.student, batch["large"])
        small = self.scores(self.student, batch["small"])
        loss = distillation_loss(torch.cat([large, small], dim=1), answers, self.temperatures[0])
        own = F.softmax(large.detach() / self.temperatures[0], dim=-1).mean(dim=(0, 1))
        used = torch.exp(-(own * own.clamp(min=1e-12).log()).sum())
        return {"loss": loss, "prototypes_used": used}  # by the student; 1: collapsed

    @staticmethod
    def scores(network: nn.ModuleDict, views: Tensor) -> Tensor:
        """[B, V, K] in fp32 of views [B, V, 3, s, s]."""
        pixels = rearrange(views, "b v c h w -> (b v) c h w")
        features = network["vit"](pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return rearrange(network["head"](features).float(), "(b v) k -> b v k", v=views.shape[1])

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        update_average(self.teacher, self.student, self.teacher_momentum, self.global_step)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(
            self.student.parameters(), self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_stable_decay(step, *self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, run: Path) -> str:
        """Write the teacher's ViT and its preprocessing to `run/dino`; returns a message for the user."""
        vit: ViTModel = copy.deepcopy(self.teacher["vit"]).half()
        with replacing_folder(run / "dino") as folder:
            vit.save_pretrained(folder)
            write_preprocessing(folder, "ViTImageProcessor", vit.config.image_size)
        return (
            f"done: {run / 'dino'} holds the ViT; judge it: scripts/judge_features.py --dino {run / 'dino'}"
        )


def balanced(scores: Tensor, temperature: float, iterations: int = 3) -> Tensor:
    """Targets [N, K], with rows summing to 1, from `scores` [N, K]; every prototype gets about N / K of the total."""
    answers = torch.exp((scores - scores.max()).double() / temperature)
    for _ in range(iterations):
        answers = answers / answers.sum(dim=0, keepdim=True).clamp(min=1e-30)
        answers = answers / answers.sum(dim=1, keepdim=True)
    return answers.float()


def distillation_loss(student: Tensor, answers: Tensor, student_temperature: float) -> Tensor:
    """Cross-entropy of every student view's scores [B, V, K] with the teacher's outputs for every other one [B, G, K].

    The student's first G views are the teacher's (eq. 1 to 3 of the paper); no view is compared with itself.
    """
    log_answer = F.log_softmax(student / student_temperature, dim=-1)
    errors = -torch.einsum("bgk,bvk->bgv", answers, log_answer)  # [B, G, V]
    other = ~torch.eye(answers.shape[1], student.shape[1], dtype=torch.bool, device=student.device)
    return errors[:, other].mean()
