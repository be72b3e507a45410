"""Training a small ViT without labels, as DINO does, for the evaluation of the embedded base."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from ldm.formats.atomic import replacing_folder
from ldm.models.contrastive import write_preprocessing
from ldm.models.from_scratch import keyed_weights, update_average, warm_stable_decay


class Head(nn.Module):
    """Features [B, D] to scores of K prototypes, [B, K]; cosines, so that no prototype wins by its length."""

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
    """A student learns what its own moving average says of another view (Caron et al., arXiv 2104.14294).

    network: keywords of `ViTConfig`. The teacher's answers are centred and sharpened, which together keep
    both from saying the same of every picture (section 3.1 there).
    """

    def __init__(
        self,
        network: dict,
        prototypes: int = 1024,
        hidden: int = 512,
        bottleneck: int = 128,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        centre_momentum: float = 0.9,
        teacher_momentum: float = 0.99,
        learning_rate: float = 1e-3,
        total_steps: int = 4000,
        warmup_steps: int = 200,
        decay_steps: int = 2000,
        weight_decay: float = 0.05,
        seed: int = 0,
    ):
        super().__init__()
        with keyed_weights(seed, "dino"):
            vit = ViTModel(ViTConfig(**network), add_pooling_layer=False)
            head = Head(network["hidden_size"], hidden, bottleneck, prototypes)
        self.student = nn.ModuleDict({"vit": vit, "head": head})
        self.teacher = copy.deepcopy(self.student).eval().requires_grad_(False)
        self.register_buffer("centre", torch.zeros(prototypes))
        self.temperatures = (student_temperature, teacher_temperature)
        self.centre_momentum, self.teacher_momentum = centre_momentum, teacher_momentum
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.steps = (warmup_steps, total_steps, decay_steps)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """batch: `large` [B, G, 3, S, S] and `small` [B, L, 3, s, s], views in [-1, 1] of B things."""
        with torch.no_grad():
            seen = self.scores(self.teacher, batch["large"])
        large = self.scores(self.student, batch["large"])
        small = self.scores(self.student, batch["small"])
        loss = distillation_loss(torch.cat([large, small], dim=1), seen, self.centre, *self.temperatures)
        self.centre.lerp_(seen.mean(dim=(0, 1)), 1 - self.centre_momentum)
        answers = F.softmax((seen - self.centre) / self.temperatures[1], dim=-1).mean(dim=(0, 1))
        used = torch.exp(-(answers * answers.clamp(min=1e-12).log()).sum())
        return {"loss": loss, "prototypes_used": used}  # 1: collapsed

    @staticmethod
    def scores(network: nn.ModuleDict, views: Tensor) -> Tensor:
        """[B, V, K] in fp32 of views [B, V, 3, s, s]."""
        pixels = views.flatten(0, 1)
        features = network["vit"](pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        return network["head"](features).float().unflatten(0, views.shape[:2])

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        update_average(self.teacher, self.student, self.teacher_momentum, self.global_step)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(
            self.student.parameters(), self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warm_stable_decay(step, *self.steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def export(self, run: Path) -> str:
        """Write the teacher's ViT and its preprocessing to `run/dino`; returns what to tell the user."""
        vit = copy.deepcopy(self.teacher["vit"]).half()
        with replacing_folder(run / "dino") as folder:
            vit.save_pretrained(folder)
            write_preprocessing(folder, "ViTImageProcessor", vit.config.image_size)
        return (
            f"done: {run / 'dino'} holds the ViT; judge it: scripts/judge_features.py --dino {run / 'dino'}"
        )


def distillation_loss(
    student: Tensor, teacher: Tensor, centre: Tensor, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross-entropy of every student view [B, V, K] with every other view of the teacher [B, G, K].

    The first G of the student's views are the teacher's (eq. 1 to 3 of the paper); none is compared with itself.
    """
    target = F.softmax((teacher - centre) / teacher_temperature, dim=-1)
    answer = F.log_softmax(student / student_temperature, dim=-1)
    errors = -torch.einsum("bgk,bvk->bgv", target, answer)  # [B, G, V]
    other = ~torch.eye(teacher.shape[1], student.shape[1], dtype=torch.bool, device=student.device)
    return errors[:, other].mean()
