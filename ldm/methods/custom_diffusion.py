"""Custom Diffusion: trains the keys and values of the UNet's cross-attention.

Kumari et al., arXiv 2212.04488. For the paper's new token, see `ldm.methods.textual_inversion`.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.formats.custom_diffusion import DELTAS_FILE, deltas, projections
from ldm.formats.small_folder import save_small_folder
from ldm.formats.subject import notes_of
from ldm.methods.all_weights import AllWeights
from ldm.models.latent_diffusion import LatentDiffusion


class CustomDiffusion(AllWeights):
    """Trains keys and values of the cross-attention; see `ldm.methods.tuning.Tuning`.

    Everything else is the base's, and left out of checkpoints and exports.
    """

    def attach(self, model: LatentDiffusion) -> None:
        if self.learning_rate == 0:
            raise UserError("model.params.learning_rate is 0, but Custom Diffusion trains only the UNet")
        for network in model.trainable.values():
            network.requires_grad_(False)
        for _, projection in projections(model.unet):
            projection.requires_grad_(True)
            projection.register_forward_hook(_start_token_detached)

    def export(
        self,
        model: LatentDiffusion,
        folder: Path,
        dtype: torch.dtype,
        subject: Mapping[str, object],
        card: str | None,
    ) -> None:
        """Write the trained weights for `load_attn_procs` of diffusers' UNet."""
        save_small_folder(folder, {DELTAS_FILE: deltas(model.unet)}, dtype, notes_of(subject, card))


def _start_token_detached(module: nn.Module, inputs: tuple[Tensor, ...], states: Tensor) -> Tensor:
    """No gradient from the start token, which all prompts share, as in the original code. states: [B, L, D]."""
    return torch.cat([states[:, :1].detach(), states[:, 1:]], dim=1)
