"""Signatures that replace those of library classes, to restrict what a config may pass them.

Lightning's Trainer takes a float for a count and any text for a precision, and its loggers write anywhere; a run's
logger stays in the run's folder. peft's configs name modules to import, files to read and data to start from; allowed
here are settings that adapt a linear or convolutional layer and leave the model as the base at the start.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from ldm.values import Count, FolderName, Must, NonNegativeFloat, NonNegativeInt, PositiveFloat, Unaffecting


def _are_devices(devices: int | str | list[int]) -> bool:
    if isinstance(devices, list):
        return 0 < len(devices) == len(set(devices))
    return devices in ("auto", -1) or (isinstance(devices, int) and devices >= 1)


Devices = Annotated[
    int | Literal["auto"] | list[NonNegativeInt],
    Must(_are_devices, "a count of at least 1, a list such as [0, 1], or -1 for all"),
]


Duration = Annotated[
    str,
    Must(
        lambda text: re.fullmatch(r"(?=.*[1-9])\d+(:\d\d){3}", text) is not None,
        "a time DD:HH:MM:SS above 0, as in 00:12:00:00",
    ),
]


def trainer(
    max_steps: Count,
    accelerator: Annotated[Literal["auto", "cpu", "gpu", "cuda", "mps"], Unaffecting] = "auto",
    devices: Annotated[Devices, Unaffecting] = "auto",
    num_nodes: Annotated[Count, Unaffecting] = 1,
    strategy: Annotated[
        Literal["auto", "ddp", "ddp_find_unused_parameters_true", "ddp_find_unused_parameters_false"],
        Unaffecting,
    ] = "auto",
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true",
    accumulate_grad_batches: Annotated[Count, Unaffecting] = 1,
    gradient_clip_val: NonNegativeFloat | None = None,
    gradient_clip_algorithm: Literal["norm", "value"] | None = None,
    deterministic: Annotated[bool | Literal["warn"], Unaffecting] = False,
    benchmark: bool | None = None,
    detect_anomaly: bool = False,
    profiler: Literal["simple", "advanced", "pytorch"] | None = None,
    max_time: Annotated[Duration | None, Unaffecting] = None,
    **others: object,
) -> None:
    """pytorch_lightning.Trainer: the keywords checked here; others are passed to Lightning unchecked."""


TRAINER_SETTINGS: dict[str, Any] = {
    "logger": False,  # built later, once the run folder exists
    "max_epochs": -1,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "use_distributed_sampler": False,
    "log_every_n_steps": 1,
    # Runs have neither epochs nor Lightning's validation loop: the order of samples has no end, and one that began
    # again after some batches would not resume where it was.
    "barebones": False,
    "check_val_every_n_epoch": 1,
    "fast_dev_run": False,
    "limit_predict_batches": None,
    "limit_test_batches": None,
    "limit_train_batches": None,
    "limit_val_batches": None,
    "min_epochs": None,
    "min_steps": None,
    "num_sanity_val_steps": None,
    "overfit_batches": 0.0,
    "reload_dataloaders_every_n_epochs": 0,
    "val_check_interval": None,
}
"""Keywords of the Trainer that are fixed; a config cannot set them."""


LoggerFolder = FolderName | Literal[""]


def tensorboard_logger(
    name: LoggerFolder | None = None,
    version: LoggerFolder | NonNegativeInt | None = None,
    prefix: str = "",
    log_graph: bool = False,
    default_hp_metric: bool = True,
    max_queue: Count = 10,
    flush_secs: Count = 120,
) -> None:
    """pytorch_lightning.loggers.TensorBoardLogger, in the run's folder."""


def csv_logger(
    name: LoggerFolder | None = None,
    version: LoggerFolder | NonNegativeInt | None = None,
    prefix: str = "",
    flush_logs_every_n_steps: Count = 100,
) -> None:
    """pytorch_lightning.loggers.CSVLogger, in the run's folder."""


def wandb_logger(
    name: FolderName | None = None,
    version: FolderName | None = None,
    project: FolderName | None = None,
    entity: FolderName | None = None,
    group: str | None = None,
    job_type: str | None = None,
    tags: Sequence[str] | None = None,
    notes: str | None = None,
    prefix: str = "",
    offline: bool = False,
    mode: Literal["online", "offline", "disabled"] | None = None,
    log_model: bool | Literal["all"] = False,
) -> None:
    """pytorch_lightning.loggers.WandbLogger, in the run's folder, without wandb.init's keywords that run programs."""


def _are_layers(names: Collection[str]) -> bool:
    """Whether these are plain ends of layer names; peft reads its patterns as regular expressions."""
    return len(names) > 0 and all(re.fullmatch(r"\w+(\.\w+)*", name) for name in names)


Layers = Annotated[
    Sequence[str], Must(_are_layers, "a list of ends of layer names, such as to_q or ff.net.2")
]
Ranks = Annotated[
    Mapping[str, Count],
    Must(_are_layers, "ends of layer names, such as conv1, each with a rank of at least 1"),
]
Alphas = Annotated[
    Mapping[str, PositiveFloat],
    Must(_are_layers, "ends of layer names, such as conv1, each with a number above 0"),
]


def lora_config(
    target_modules: Layers,
    r: Count = 8,
    lora_alpha: PositiveFloat = 8,
    exclude_modules: Layers | None = None,
    rank_pattern: Ranks | None = None,
    alpha_pattern: Alphas | None = None,
    use_rslora: bool = False,
    use_dora: bool = False,
    init_lora_weights: Literal[True, "gaussian"] = True,
) -> None:
    """peft.LoraConfig: LoRA, and DoRA with `use_dora`. Other ways to initialise change the base or read data."""


def loha_config(
    target_modules: Layers,
    r: Count = 8,
    alpha: PositiveFloat = 8,
    exclude_modules: Layers | None = None,
    rank_pattern: Ranks | None = None,
    alpha_pattern: Alphas | None = None,
    use_effective_conv2d: bool = False,
) -> None:
    """peft.LoHaConfig: products of two LoRAs, element by element."""


def lokr_config(
    target_modules: Layers,
    r: Count = 8,
    alpha: PositiveFloat = 8,
    exclude_modules: Layers | None = None,
    rank_pattern: Ranks | None = None,
    alpha_pattern: Alphas | None = None,
    use_effective_conv2d: bool = False,
    decompose_both: bool = False,
    decompose_factor: Count | Literal[-1] = -1,
) -> None:
    """peft.LoKrConfig: Kronecker products."""


def oft_config(
    target_modules: Layers,
    r: NonNegativeInt = 0,
    oft_block_size: NonNegativeInt = 32,
    exclude_modules: Layers | None = None,
    block_share: bool = False,
    use_cayley_neumann: bool = True,
    num_cayley_neumann_terms: Count = 5,
) -> None:
    """peft.OFTConfig: rotations of the weights, in blocks. One of `r`, their number, and `oft_block_size` is 0."""


Betas = Annotated[
    Sequence[float],
    Must(
        lambda betas: len(betas) == 2 and all(0 <= beta < 1 for beta in betas),
        "two numbers from 0 to below 1",
    ),
]


def adamw_schedule_free(
    betas: Betas = (0.9, 0.999),
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    warmup_steps: NonNegativeInt = 0,
    r: NonNegativeFloat = 0.0,
    weight_lr_power: NonNegativeFloat = 2.0,
    foreach: bool = True,
) -> None:
    """schedulefree.AdamWScheduleFree, which checks no value."""


def prodigy(
    betas: Betas = (0.9, 0.999),
    beta3: NonNegativeFloat | None = None,
    eps: PositiveFloat = 1e-8,
    weight_decay: NonNegativeFloat = 0.0,
    decouple: bool = True,
    use_bias_correction: bool = False,
    safeguard_warmup: bool = False,
    d0: PositiveFloat = 1e-6,
    d_coef: PositiveFloat = 1.0,
    growth_rate: PositiveFloat = math.inf,
    slice_p: Count = 1,
) -> None:
    """prodigyopt.Prodigy, whose own signature has no types that are checked."""


SIGNATURES: dict[str, Callable[..., None]] = {
    "peft.LoHaConfig": loha_config,
    "peft.LoKrConfig": lokr_config,
    "peft.LoraConfig": lora_config,
    "peft.OFTConfig": oft_config,
    "prodigyopt.Prodigy": prodigy,
    "pytorch_lightning.loggers.CSVLogger": csv_logger,
    "pytorch_lightning.loggers.TensorBoardLogger": tensorboard_logger,
    "pytorch_lightning.loggers.WandbLogger": wandb_logger,
    "schedulefree.AdamWScheduleFree": adamw_schedule_free,
}
"""Keywords that a config may give to a library's class, by its target."""
