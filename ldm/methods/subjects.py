"""A model's subjects: their identifiers, checks of their prompts, their losses."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from ldm.concepts import PLACEHOLDER, Concept, Learned
from ldm.data.batch import Batch
from ldm.data.subject import SubjectImages
from ldm.errors import UserError, printable
from ldm.models.identifier import resolve_identifiers


def with_identifiers(
    concepts: Sequence[Concept], identifier: str, tokenizer: CLIPTokenizer, seed: int
) -> tuple[Learned, ...]:
    """`concepts` with resolved identifiers; `identifier` is the default, or that of the only subject."""
    if not concepts:
        return (Learned(resolve_identifiers([identifier], tokenizer, seed)[0]),)
    wanted = [concept.identifier or identifier for concept in concepts]
    found = resolve_identifiers(wanted, tokenizer, seed)
    return tuple(
        Learned(text, concept.class_word, concept.placeholder)
        for text, concept in zip(found, concepts, strict=True)
    )


def check_prompts(subject: Learned, images: SubjectImages) -> None:
    """Raise UserError for a configured prompt that does not name `subject`; warn of such captions."""
    nameless = []
    prompts = [
        *zip(images.prompts, images.captions, strict=True),
        *((text, None) for text in images.templates),
    ]
    for prompt, caption in prompts:
        if subject.placeholder in prompt or subject.identifier in prompt.split():
            continue
        if caption is None:
            raise UserError(
                f"prompt '{prompt}' of the subject's images: write {PLACEHOLDER} where its identifier goes"
            )
        nameless.append(f"{caption.source.name} ('{prompt}')")
    if nameless:
        warnings.warn(
            printable(
                f"captions without {PLACEHOLDER}, from which the subject is not learned: {', '.join(nameless)}"
            ),
            stacklevel=1,  # always the same place, so that Python shows it once
        )


def losses_by_subject(
    subjects: Sequence[Learned], batch: Batch, subject_error: Tensor, prior_error: Tensor
) -> dict[str, Tensor]:
    """`subject_loss_<name>` and `prior_loss_<name>` for each of several subjects, as [sum of errors, count].

    subject_error: of the batch's subject examples, [B]. prior_error: of their class samples, [B] or [0].
    """
    if len(subjects) == 1:
        return {}
    apart = {}
    for place, subject in enumerate(subjects):
        # By numbers of the host: an index on the device would wait for the device.
        own = [i for i, concept in enumerate(batch.concepts) if concept == place]
        for kind, error in (("subject", subject_error.detach()), ("prior", prior_error.detach())):
            if len(error):
                total = torch.stack([error[i] for i in own]).sum() if own else error.new_zeros(())
                count = error.new_full((), len(own))
                apart[f"{kind}_loss_{subject.name}"] = torch.stack([total, count])
    return apart
