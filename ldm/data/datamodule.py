"""Pairs subject photographs with class-prior samples; every draw is keyed by the sample number."""

import functools
import hashlib
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.concepts import Concept, Subjects, concepts_of
from ldm.data.batch import Batch, Draws, LoadedBatch, Sample, collate
from ldm.data.buckets import buckets
from ldm.data.captions import CaptionChanges
from ldm.data.class_prior import ClassPrior, classes_of
from ldm.data.images import image_files
from ldm.data.latents import LatentSource, SubjectLatents
from ldm.data.order import SampleOrder
from ldm.data.prior import PriorSettings
from ldm.data.sampler import CountingBatchSampler
from ldm.data.subject import SubjectImages, split_held_out
from ldm.data.timesteps import TimestepSampling, Uniform
from ldm.errors import UserError
from ldm.values import (
    ClassWord,
    Count,
    NonNegativeFloat,
    NonNegativeInt,
    Probability,
    Prompts,
    Seed,
    Text,
    Unaffecting,
)


class DreamBoothData(LightningDataModule):
    """Batches (`ldm.data.batch.Batch`) of subject images and class-prior samples, in equal number, as latents."""

    def __init__(
        self,
        data_root: Annotated[Text, Unaffecting],
        class_word: ClassWord,
        prompt: Text,
        prior_prompt: Text,
        size: Count,
        seed: Seed,
        prior: PriorSettings,
        batch_size: Annotated[Count, Unaffecting] = 1,
        num_workers: Annotated[NonNegativeInt, Unaffecting] = 0,
        flip_probability: Probability = 0.0,
        random_crop: bool = False,
        templates: Prompts | None = None,
        captions: Annotated[bool, Unaffecting] = False,
        tag_shuffle: bool = False,
        tag_dropout: Probability = 0.0,
        caption_dropout: Probability = 0.0,
        unmasked_weight: Probability = 1.0,
        bucket_step: Count | None = None,
        hold_out: NonNegativeInt = 0,
        reg_data_root: Annotated[Text | None, Unaffecting] = None,
        concepts: Subjects | None = None,
        timesteps: Callable[..., TimestepSampling] = Uniform,
        offset_noise: NonNegativeFloat = 0.0,
    ):
        """`configs/dreambooth.yaml` explains each setting. `{class_word}` is replaced by the class word.

        concepts: several subjects; then data_root, class_word and reg_data_root are ignored.
        """
        super().__init__()
        self.timesteps, self.offset_noise = timesteps(), offset_noise
        if concepts is None:
            folder = Path(reg_data_root) if reg_data_root else None
            self.concepts: tuple[Concept, ...] = (
                Concept(Path(data_root), class_word, prompt, prior_prompt, reg_data_root=folder),
            )
        else:
            self.concepts = concepts_of(concepts, prompt, prior_prompt)
        self.size = size
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.prior = asdict(prior)

        allowed = buckets(size, bucket_step)
        self.unmasked_weight = unmasked_weight
        self.subjects: list[SubjectImages] = []
        self.validation: list[SubjectImages] = []
        """For each subject, its held-out images, or all if none are held out."""
        for place, concept in enumerate(self.concepts):
            kept, held_out = files_of(concept, hold_out)
            options: dict[str, Any] = {
                "prompt": concept.prompt,
                "placeholder": concept.placeholder,
                "size": size,
                "seed": seed,
                "captions": captions,
                "shapes": allowed,
                "unmasked_weight": unmasked_weight,
                "order": f"subject order{f' {place}' if place else ''}",
            }
            subject = SubjectImages(
                kept,
                flip_probability=flip_probability,
                random_crop=random_crop,
                templates=[concept.filled(template) for template in templates or ()],
                changes=CaptionChanges(tag_shuffle, tag_dropout, caption_dropout),
                **options,
            )
            held_out_images = SubjectImages(held_out, **options) if held_out else None
            self.subjects.append(subject)
            self.validation.append(held_out_images or subject.without_augmentation())
        had = [shape for subject in self.subjects for shape in subject.shapes]
        self.shapes = sorted(set(had), key=lambda shape: (-had.count(shape), shape))
        """The photographs' shapes, in px, the most frequent first."""
        counts = [[subject.shapes.count(shape) for shape in self.shapes] for subject in self.subjects]
        self.order = SampleOrder.of(seed, [concept.weight for concept in self.concepts], counts)
        self.classes = classes_of(self.concepts, self.shapes, seed, self.prior)
        self.class_of = [
            next(prior for prior in self.classes if place in prior.members)
            for place in range(len(self.concepts))
        ]

    @property
    def draws_prior(self) -> bool:
        """Whether training may still need prior samples from the untrained model."""
        return self.with_prior and not all(prior.is_drawn for prior in self.classes)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of the training images, captions and masks; their paths do not matter."""
        prompts = [prompt for subject in self.subjects for prompt in subject.prompts]
        digest = hashlib.blake2b("\n".join(prompts).encode(), digest_size=16)
        files = [path for subject in self.subjects for path in subject.files]
        for path in files + [path for prior in self.classes for path in prior.files]:
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        for mask in (mask for subject in self.subjects for mask in subject.masks):
            digest.update(mask.tobytes() if mask is not None else b"")
        return digest.hexdigest()

    def connect(self, source: LatentSource, with_prior: bool) -> None:
        """Connect to the model through `source`. with_prior: whether batches have the prior's half."""
        self.source = source
        self.with_prior = with_prior
        step = self.batch_size * self.trainer.accumulate_grad_batches * self.trainer.world_size
        self.order = replace(self.order, step=step)
        folder = Path(self.trainer.default_root_dir) / "prior"
        examples = self.trainer.max_steps * step
        images = self.fingerprint if any(prior.files for prior in self.classes) else ""
        for number, prior in enumerate(self.classes):
            word = re.sub(r"[^\w.-]", "_", prior.class_word)
            own = folder / f"{number}-{word}" if len(self.classes) > 1 else folder
            wanted = [self.prior_samples_beside(examples, prior, shape) for shape in range(len(self.shapes))]
            prior.connect(source, own, images, wanted)

    def prepare_latents(self) -> None:
        """Encode the photographs, and read the prior samples drawn by an earlier start of this run."""
        self.subject_latents = SubjectLatents(self.subjects, self.source)
        for prior in self.classes:
            for bank in prior.banks:
                bank.load_existing()
                if self.with_prior and self.prior.get("fill_at_start"):
                    bank.fill(range(bank.wanted))

    def train_dataloader(self) -> DataLoader[Sample]:
        """An endless loader that starts after the last trained sample."""
        sampler = CountingBatchSampler(
            self.batch_size,
            first_micro_batch=self.trainer.global_step * self.trainer.accumulate_grad_batches,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
        )
        return DataLoader(
            TrainingSamples(self),
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=self.num_workers,
            worker_init_fn=ignore_stop_signals,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_after_batch_transfer(self, batch: LoadedBatch, dataloader_idx: int) -> Batch:
        """Add the latents. At this point the batch is on the model's device, and autocast is off."""
        latents = self.subject_latents.of(batch)
        if self.with_prior:
            self._fill_banks(batch.numbers)
            latents = torch.cat([latents, self._prior_latents(batch, latents.device)])
        return batch.with_latents(latents)

    def prior_samples_beside(self, examples: int, prior: ClassPrior, shape: int) -> int:
        """How many prior samples of a class and shape are paired with a run's first `examples` subject samples."""
        return min(prior.count, self.order.number_before(examples, shape, prior.members))

    def prior_number(self, n: int) -> int:
        """The number of the prior sample paired with sample `n`."""
        prior = self.class_of[self.order.subject(n)]
        return prior.order(self.order.number_among(n, prior.members))

    def _fill_banks(self, numbers: Sequence[int]) -> None:
        """Draw the prior samples for the samples of this micro-batch on all processes, which call it together."""
        together = self.batch_size * self.trainer.world_size
        first = numbers[0] // together * together
        for prior in self.classes:
            wanted = [
                n for n in range(first, first + together) if self.class_of[self.order.subject(n)] is prior
            ]
            prior.banks[self.order.shape(first)].fill([self.prior_number(n) for n in wanted])

    def _prior_latents(self, batch: LoadedBatch, device: torch.device) -> Tensor:
        shape = self.order.shape(batch.numbers[0])  # of the whole batch
        if len(self.classes) == 1:
            return self.classes[0].banks[shape].latents(batch.prior_numbers, device)
        pairs = zip(batch.concepts, batch.prior_numbers, strict=True)
        return torch.cat(
            [self.class_of[place].banks[shape].latents([number], device) for place, number in pairs]
        )


def files_of(concept: Concept, hold_out: int) -> tuple[list[Path], list[Path]]:
    """The photographs to train on, and the last `hold_out`, which are not used in training."""
    files = image_files(concept.data_root)
    if hold_out and len(files) <= hold_out:
        raise UserError(
            f"data.params.hold_out is {hold_out}, but {concept.data_root} has only {len(files)} images"
        )
    return split_held_out(files, hold_out)


class TrainingSamples(Dataset[Sample]):
    """Sample number n of a run: a subject image, the number of a prior sample, and the draws for both.

    Holds plain values instead of the data module, since loader processes get a pickled copy.
    """

    def __init__(self, data: DreamBoothData):
        self.subjects = data.subjects
        self.order = data.order
        self.with_prior = data.with_prior
        self.priors = [
            (
                prior.members,
                prior.order,
                prior.prompt,
                [[prior.size_ids(k, shape) for k in range(prior.count)] for shape in data.shapes],
            )
            for prior in data.class_of
        ]
        self.seed = data.seed
        self.shapes = data.shapes
        self.latent_shapes = [data.source.latent_shape(height, width) for width, height in data.shapes]
        self.num_timesteps = data.source.num_timesteps
        self.noising = (data.timesteps, data.offset_noise)
        self.masked = data.unmasked_weight != 1

    def __getitem__(self, n: int) -> Sample:
        shape, concept = self.order.shape(n), self.order.subject(n)
        latent = self.latent_shapes[shape]
        draws = Draws.of(self.seed, "subject", n, latent, self.num_timesteps, *self.noising)
        k, cells = self.order.number_among(n, [concept]), latent[1:] if self.masked else None
        example = self.subjects[concept].example(k, n, self.shapes[shape], cells)
        sample: Sample = {**example, "number": n, "concept": concept, "draws": draws}
        if self.with_prior:
            members, order, prompt, size_ids = self.priors[concept]
            sample["prior_number"] = order(self.order.number_among(n, members))
            sample["prior_prompt"] = prompt
            sample["prior_size_ids"] = size_ids[shape][sample["prior_number"]]
            sample["prior_draws"] = Draws.of(self.seed, "prior", n, latent, self.num_timesteps, *self.noising)
        return sample


def ignore_stop_signals(worker: int) -> None:
    """Let a loader process finish the current step after Ctrl-C, which reaches it too; it ends with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
