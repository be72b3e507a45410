"""The losses of each subject, where a model learns several."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.concepts import Learned
from ldm.data.batch import Batch


def losses_apart(
    subjects: Sequence[Learned], batch: Batch, subject_error: Tensor, prior_error: Tensor
) -> dict[str, Tensor]:
    """`subject_loss_<name>` and `prior_loss_<name>` of each of several subjects, as [sum of errors, their count].

    subject_error: of the batch's subject examples, [B]. prior_error: of the class samples beside them, [B] or [0].
    """
    if len(subjects) == 1:
        return {}
    apart = {}
    concepts = torch.tensor(batch.concepts, device=subject_error.device)  # [B]
    for place, subject in enumerate(subjects):
        own = concepts == place
        for kind, error in (("subject", subject_error), ("prior", prior_error)):
            if len(error):
                apart[f"{kind}_loss_{subject.name}"] = torch.stack([error.detach()[own].sum(), own.sum()])
    return apart
