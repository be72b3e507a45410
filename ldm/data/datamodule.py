"""Pairs subject photographs with class-prior samples; the sample number keys every draw."""

import hashlib
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.concepts import Concept
from ldm.data.batch import Batch, Draws, LoadedBatch, Sample, collate
from ldm.data.images import image_files, load_image, resize_and_crop, to_tensor
from ldm.data.latents import LatentSource, SubjectLatents
from ldm.data.prior import NOT_IN_LATENTS, PriorBank, PriorSettings
from ldm.data.prior_cache import PriorCache
from ldm.data.sampler import CountingBatchSampler
from ldm.data.subject import SubjectImages, shuffled_index, split_held_out
from ldm.errors import UserError
from ldm.files import user_cache
from ldm.randomness import generator
from ldm.values import ClassWord, Count, NonNegativeInt, Probability, Seed, Text, Unaffecting


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
        captions: Annotated[bool, Unaffecting] = False,
        hold_out: NonNegativeInt = 0,
        reg_data_root: Annotated[Text | None, Unaffecting] = None,
    ):
        """`configs/dreambooth.yaml` says what each setting means. `{class_word}` stands for the class word."""
        super().__init__()
        self.concept = Concept(Path(data_root), class_word, prompt, prior_prompt)
        self.size = size
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.reg_data_root = reg_data_root
        self.prior = asdict(prior)

        files = image_files(data_root)
        if hold_out and len(files) <= hold_out:
            raise UserError(
                f"data.params.hold_out is {hold_out}, but {data_root} has only {len(files)} images"
            )
        kept, held_out = split_held_out(files, hold_out)
        options: dict[str, Any] = {
            "prompt": self.concept.prompt,
            "size": size,
            "seed": seed,
            "captions": captions,
        }
        self.subject = SubjectImages(
            kept, flip_probability=flip_probability, random_crop=random_crop, **options
        )
        self.validation = (
            SubjectImages(held_out, **options) if held_out else self.subject.without_augmentation()
        )
        self.prior_files = image_files(reg_data_root) if reg_data_root else []
        for path in self.prior_files:
            # Too many to keep in memory, but an unreadable one must be reported before the run starts.
            load_image(path, size)
        count = len(self.prior_files) or self.prior["count"]
        self.prior_order = PriorOrder(seed, count)

    @property
    def prior_count(self) -> int:
        """How many different prior samples there are."""
        return self.prior_order.count

    @property
    def draws_prior(self) -> bool:
        """Whether training may still ask the untrained model for prior samples."""
        return self.with_prior and not self.prior_files and not self.bank.full

    @property
    def fingerprint(self) -> str:
        """Hash of the training images and their captions, wherever they are stored."""
        digest = hashlib.blake2b("\n".join(self.subject.prompts).encode(), digest_size=16)
        for path in (*self.subject.files, *self.prior_files):
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        return digest.hexdigest()

    def connect(self, source: LatentSource, with_prior: bool) -> None:
        """Connect to the model through `source`. with_prior: whether batches have the prior's half."""
        self.source = source
        self.with_prior = with_prior
        concept, settings = self.concept, {"base": source.fingerprint, "size": self.size, "seed": self.seed}
        if self.prior_files:
            settings |= {"images": self.fingerprint}
            draw = self._encode_prior_files
        else:
            settings |= {"prompt": concept.prior_prompt}
            settings |= {key: value for key, value in self.prior.items() if key not in NOT_IN_LATENTS}

            def draw(numbers: Sequence[int]) -> Tensor:
                return source.draw_prior(concept.prior_prompt, numbers, self.seed, self.prior)

        folder = Path(self.trainer.default_root_dir) / "prior"
        cache = None if self.prior_files else self._prior_cache()
        chunk_size = self.prior["chunk_size"]
        self.bank = PriorBank(folder, self.prior_count, chunk_size, settings, draw, cache, source.computed_by)

    def _prior_cache(self) -> PriorCache | None:
        place = self.prior.get("cache")
        if place is None:
            return None
        folder = user_cache("prior") if place == "auto" else Path(place).expanduser()
        return PriorCache(folder, self.prior["cache_gigabytes"])

    def prepare_latents(self) -> None:
        """Encode the photographs, and read the prior samples that an earlier part of this run has drawn."""
        self.subject_latents = SubjectLatents(self.subject, self.source)
        self.bank.load_existing()
        if self.with_prior and self.prior.get("fill_at_start"):
            self.bank.fill(range(self.prior_count))

    def train_dataloader(self) -> DataLoader[Sample]:
        """An endless loader that starts at the sample after the last one trained on."""
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
        """Add the latents. At this point the batch is on the model's device and no autocast is on."""
        latents = self.subject_latents.of(batch)
        if self.with_prior:
            self.bank.fill(self._prior_numbers_of_all_processes(batch.numbers))
            latents = torch.cat([latents, self.bank.latents(batch.prior_numbers, latents.device)])
        return batch.with_latents(latents)

    def _prior_numbers_of_all_processes(self, numbers: Sequence[int]) -> list[int]:
        together = self.batch_size * self.trainer.world_size
        first = numbers[0] // together * together
        return [self.prior_order(n) for n in range(first, first + together)]

    def _encode_prior_files(self, numbers: Sequence[int]) -> Tensor:
        images = [load_image(self.prior_files[number], self.size) for number in numbers]
        pixels = torch.stack([to_tensor(resize_and_crop(image, self.size)) for image in images])
        mean, std = self.source.posterior(pixels)
        shape = self.source.latent_shape
        noise = [torch.randn(shape, generator=generator(self.seed, "prior posterior", i)) for i in numbers]
        return mean + std * torch.stack(noise).to(mean.device)


@dataclass(frozen=True)
class PriorOrder:
    """Which of `count` prior samples accompanies a sample: in order at first, then in shuffled passes."""

    seed: int
    count: int

    def __call__(self, n: int) -> int:
        return n if n < self.count else shuffled_index(self.seed, "prior order", n, self.count)


class TrainingSamples(Dataset[Sample]):
    """Sample number n of a run: a subject image, the number of a prior sample, and the draws for both.

    Holds plain values and not the data module, since loader processes get a pickled copy.
    """

    def __init__(self, data: DreamBoothData):
        self.subject = data.subject
        self.prior_order = data.prior_order if data.with_prior else None
        self.prior_prompt = data.concept.prior_prompt
        self.seed = data.seed
        self.shapes = (data.source.latent_shape, data.source.num_timesteps)

    def __getitem__(self, n: int) -> Sample:
        draws = Draws.of(self.seed, "subject", n, *self.shapes)
        sample: Sample = {**self.subject[n], "number": n, "draws": draws}
        if self.prior_order is not None:
            sample["prior_number"] = self.prior_order(n)
            sample["prior_prompt"] = self.prior_prompt
            sample["prior_draws"] = Draws.of(self.seed, "prior", n, *self.shapes)
        return sample


def ignore_stop_signals(worker: int) -> None:
    """Let a loader process finish the step in progress after Ctrl-C, which reaches it too; it ends with its parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
