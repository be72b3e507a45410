"""Interleaves subject photographs with class-prior samples, everything keyed by the sample number."""

import hashlib
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ldm.data.images import image_files, load_image, resize_and_crop, to_tensor
from ldm.data.prior import Draw, PriorBank
from ldm.data.sampler import CountingBatchSampler
from ldm.data.subject import Draws, SubjectImages, shuffled_index, split_held_out
from ldm.errors import UserError
from ldm.randomness import generator


class DreamBoothData(LightningDataModule):
    """Batches of subject images and class-prior latents, in equal number.

    A batch is {"views": numbers of subject images (or "pixels": [B, 3, S, S] in [-1, 1] where crops are random),
    "posterior_noise": [B, C, h, w], "prompts": subject's then prior's, "noise": [2B, C, h, w],
    "timesteps": [2B], "prior_latents": [B, C, h, w]}; without prior loss the prior's half is left out.
    """

    def __init__(
        self,
        data_root: str | Path,
        class_word: str,
        prompt: str,
        prior_prompt: str,
        size: int,
        seed: int,
        batch_size: int = 1,
        num_workers: int = 0,
        flip_probability: float = 0.0,
        random_crop: bool = False,
        captions: bool = False,
        hold_out: int = 0,
        reg_data_root: str | Path | None = None,
        prior: Mapping[str, Any] | None = None,
    ):
        """`configs/dreambooth.yaml` says what each setting means. `{class_word}` stands for the class word."""
        super().__init__()
        if not str(class_word or "").strip():
            raise UserError(
                "data.params.class_word is empty: name the subject's class, as in --class_word dog"
            )
        if batch_size < 1:
            raise UserError(f"data.params.batch_size is {batch_size}: it must be at least 1")
        self.class_word = class_word
        self.prompt = _fill_in(prompt, class_word, "prompt")
        self.prior_prompt = _fill_in(prior_prompt, class_word, "prior_prompt")
        self.size = size
        self.seed = seed
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.reg_data_root = reg_data_root
        self.prior = dict(prior or {})
        for key in ("count", "chunk_size", "steps"):
            if self.prior.get(key, 1) < 1:
                raise UserError(f"data.params.prior.{key} is {self.prior[key]}: it must be at least 1")

        files = image_files(data_root)
        if hold_out and len(files) <= hold_out:
            raise UserError(
                f"data.params.hold_out is {hold_out}, but {data_root} has only {len(files)} images"
            )
        kept, held_out = split_held_out(files, hold_out)
        options = {"prompt": self.prompt, "size": size, "seed": seed, "captions": captions}
        self.subject = SubjectImages(
            kept, flip_probability=flip_probability, random_crop=random_crop, **options
        )
        self.validation = (
            SubjectImages(held_out, **options) if held_out else self.subject.without_augmentation()
        )
        self.prior_files = image_files(reg_data_root) if reg_data_root else []
        for path in self.prior_files:
            load_image(
                path, size
            )  # too many to keep, but an unreadable one is to be told before the run starts
        self.bank: PriorBank | None = None

    @property
    def prior_count(self) -> int:
        """How many different prior samples there are."""
        return len(self.prior_files) or self.prior["count"]

    @property
    def fingerprint(self) -> str:
        """Hash of the images that are trained on, and their captions; where they lie does not matter."""
        digest = hashlib.blake2b("\n".join(self.subject.prompts).encode(), digest_size=16)
        for path in (*self.subject.files, *self.prior_files):
            digest.update(hashlib.blake2b(path.read_bytes()).digest())
        return digest.hexdigest()

    def connect(
        self,
        latent_shape: Sequence[int],
        num_timesteps: int,
        with_prior: bool,
        draw_prior: Draw,
        encode: Callable[[Tensor, Tensor], Tensor],
        base: str,
    ) -> None:
        """Take from the model what this room must not import.

        draw_prior: samples of the frozen base; encode: (pixels, noise) -> latents; base: its fingerprint.
        """
        self.latent_shape = tuple(latent_shape)
        self.num_timesteps = num_timesteps
        self.with_prior = with_prior
        settings = {
            "base": base,
            "prompt": self.prior_prompt,
            "size": self.size,
            "seed": self.seed,
            **{key: value for key, value in self.prior.items() if key != "fill_at_start"},
        }
        draw = draw_prior
        if self.prior_files:
            settings = {"base": base, "images": self.fingerprint, "size": self.size, "seed": self.seed}

            def draw(indices: Sequence[int]) -> Tensor:
                return self._encode_prior_files(indices, encode)

        folder = Path(self.trainer.default_root_dir) / "prior"
        self.bank = PriorBank(folder, self.prior_count, self.prior["chunk_size"], settings, draw)

    def train_dataloader(self) -> DataLoader:
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
            collate_fn=list,
            num_workers=self.num_workers,
            worker_init_fn=ignore_stop_signals,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def on_before_batch_transfer(self, batch: list[dict], dataloader_idx: int) -> dict:
        return collate(batch)

    def on_after_batch_transfer(self, batch: dict, dataloader_idx: int) -> dict:
        if self.with_prior:
            self.bank.fill(self._indices_of_all_processes(batch["numbers"]))
            batch["prior_latents"] = self.bank.latents(batch["prior_indices"], batch["noise"].device)
        return batch

    def prior_index(self, n: int) -> int:
        """Which prior sample accompanies sample number `n`: in order at first, then in shuffled passes."""
        if n < self.prior_count:
            return n
        return shuffled_index(self.seed, "prior order", n, self.prior_count)

    def _indices_of_all_processes(self, numbers: Sequence[int]) -> list[int]:
        together = self.batch_size * self.trainer.world_size
        first = numbers[0] // together * together
        return [self.prior_index(n) for n in range(first, first + together)]

    def _encode_prior_files(
        self, indices: Sequence[int], encode: Callable[[Tensor, Tensor], Tensor]
    ) -> Tensor:
        images = [load_image(self.prior_files[index], self.size) for index in indices]
        pixels = torch.stack([to_tensor(resize_and_crop(image, self.size)) for image in images])
        noise = [
            torch.randn(self.latent_shape, generator=generator(self.seed, "prior posterior", i))
            for i in indices
        ]
        return encode(pixels, torch.stack(noise))


class TrainingSamples(Dataset):
    """Sample number n of a run: a subject image, a prior index, and all that is drawn for them."""

    def __init__(self, data: DreamBoothData):
        self.subject = data.subject
        self.prior_index = data.prior_index
        self.prior_prompt = data.prior_prompt
        self.with_prior = data.with_prior
        self.seed = data.seed
        self.shapes = (data.latent_shape, data.num_timesteps)

    def __getitem__(self, n: int) -> dict:
        sample = {"number": n, **self.subject[n], "draws": Draws.of(self.seed, "subject", n, *self.shapes)}
        if self.with_prior:
            sample["prior_index"] = self.prior_index(n)
            sample["prior_prompt"] = self.prior_prompt
            sample["prior_draws"] = Draws.of(self.seed, "prior", n, *self.shapes)
        return sample


def ignore_stop_signals(worker: int) -> None:
    """Ctrl-C reaches loader processes too, but they are to serve the step in progress; they end with their parent."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def collate(samples: Sequence[dict]) -> dict:
    """Samples -> one batch, the subject's half first (see DreamBoothData). Numbers stay on the host."""
    with_prior = "prior_draws" in samples[0]
    draws = [s["draws"] for s in samples] + ([s["prior_draws"] for s in samples] if with_prior else [])
    if "pixels" in samples[0]:
        images = {"pixels": torch.stack([s["pixels"] for s in samples])}
    else:
        images = {"views": [s["view"] for s in samples]}
    return {
        "numbers": [s["number"] for s in samples],
        **images,
        "posterior_noise": torch.stack([s["draws"].posterior_noise for s in samples]),
        "prompts": [s["prompt"] for s in samples]
        + ([s["prior_prompt"] for s in samples] if with_prior else []),
        "noise": torch.stack([d.noise for d in draws]),
        "timesteps": torch.tensor([d.timestep for d in draws]),
        "prior_indices": [s["prior_index"] for s in samples] if with_prior else [],
    }


def _fill_in(prompt: str, class_word: str, key: str) -> str:
    if not str(prompt or "").strip():
        raise UserError(f"data.params.{key} is empty: write a prompt such as 'a photo of [V] {{class_word}}'")
    return prompt.replace("{class_word}", class_word)
