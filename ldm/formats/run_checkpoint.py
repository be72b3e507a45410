"""The content of a run's checkpoint, for resuming the run and for sampling."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, JsonValue
from torch import Tensor

from ldm.concepts import Learned
from ldm.formats.described import Content
from ldm.formats.subject import LearnedConcept
from ldm.values import Count, NonNegativeFloat, NonNegativeInt, Rates, Text

Named = dict[str, Tensor]


class Node(Content):
    """A part of a config that names a class to build."""

    target: Text
    params: dict[str, JsonValue] | None = None


class ModelParams(Content):
    """The settings of a run's model for reading its base and choosing what trains."""

    revision: str | None = None
    variant: str | None = None
    use_ema: bool = True
    vae: str | None = None
    prediction_type: str | None = None
    zero_terminal_snr: bool = False
    clip_skip: Count = 1
    learning_rate: NonNegativeFloat
    text_encoder_learning_rate: Rates | None = None
    tuning: Node | None = None

    def base_options(self) -> dict[str, Any]:
        """The options for `LatentDiffusion.from_base`."""
        return self.model_dump(exclude={"learning_rate", "text_encoder_learning_rate", "tuning"})


class DataParams(Content):
    """The settings of a run's data that sampling and the model card need."""

    class_word: str | None = None


class ModelSection(Content):
    params: ModelParams


class DataSection(Content):
    params: DataParams


class LightningSection(Content):
    trainer: dict[str, JsonValue]


class RunConfig(Content):
    """The config of a run that learned a subject."""

    model: ModelSection
    data: DataSection
    lightning: LightningSection


class LearnedSubject(Content):
    """A checkpoint, full or with only weights, for sampling a learned subject.

    The run's tuning checks that `state_dict` has the tensors that it trains.
    """

    state_dict: Named
    global_step: NonNegativeInt
    identifier: Text
    concepts: list[LearnedConcept] = []
    """Empty in checkpoints from before several subjects were possible."""
    base: Text
    base_fingerprint: Text
    config: RunConfig

    def learned(self) -> tuple[Learned, ...]:
        """The subjects, as needed for prompts."""
        if self.concepts:
            return tuple(subject.learned() for subject in self.concepts)
        return (Learned(self.identifier, self.config.data.params.class_word),)


class Counts(Content):
    """Lightning's counters. It turns all keys into attributes, so no others are allowed."""

    model_config = ConfigDict(extra="forbid")

    ready: NonNegativeInt
    completed: NonNegativeInt
    started: NonNegativeInt = 0
    processed: NonNegativeInt = 0


class Progress(Content):
    total: Counts
    current: Counts


class BatchProgress(Progress):
    is_last_batch: bool


class StepCounts(Content):
    step: Progress
    zero_grad: Progress


class OptimizerProgress(Content):
    optimizer: StepCounts


class FitLoop(Content):
    """The state of Lightning's training loop. Parts that Lightning does not need may be missing."""

    epoch: Annotated[Progress, Field(alias="epoch_progress")]
    batch: Annotated[BatchProgress, Field(alias="epoch_loop.batch_progress")]
    optimizer: Annotated[OptimizerProgress, Field(alias="epoch_loop.automatic_optimization.optim_progress")]
    scheduler: Annotated[Progress, Field(alias="epoch_loop.scheduler_progress")]
    validation: Annotated[BatchProgress | None, Field(alias="epoch_loop.val_loop.batch_progress")] = None
    manual: Annotated[Progress | None, Field(alias="epoch_loop.manual_optimization.optim_step_progress")] = (
        None
    )
    state: Annotated[dict[str, JsonValue], Field(alias="state_dict")] = {}
    epoch_state: Annotated[dict[str, JsonValue], Field(alias="epoch_loop.state_dict")] = {}


class Loops(Content):
    fit_loop: FitLoop


class ParameterGroup(Content):
    params: list[NonNegativeInt]
    lr: float


class OptimizerState(Content):
    """torch's optimizer state, by parameter number."""

    state: dict[int, dict[str, object]]
    param_groups: Annotated[list[ParameterGroup], Field(min_length=1)]


class ScheduleState(Content):
    """torch's `LambdaLR`, which turns every key into an attribute."""

    model_config = ConfigDict(extra="forbid")

    last_epoch: NonNegativeInt
    base_lrs: list[float]
    lr_lambdas: list[dict[str, JsonValue] | None]
    last_lr: Annotated[list[float], Field(alias="_last_lr")]
    step_count: Annotated[NonNegativeInt, Field(alias="_step_count")]
    is_initial: Annotated[bool, Field(alias="_is_initial")] = False
    called: Annotated[bool, Field(alias="_get_lr_called_within_step")] = False
    verbose: bool | str = False


class FullState(Content):
    """A checkpoint from which a run can be resumed, whatever it trains."""

    state_dict: Named
    global_step: NonNegativeInt
    config: dict[str, JsonValue]
    loops: Loops
    optimizer_states: Annotated[list[OptimizerState], Field(min_length=1)]
    lr_schedulers: Annotated[list[ScheduleState], Field(min_length=1)]
    callbacks: dict[str, dict[str, Any]] = {}
    identifier: Text | None = None
    base: Text | None = None
    base_fingerprint: Text | None = None
    data_fingerprint: Text | None = None
    samples_per_step: Count | None = None
    training_state_dict: Named | None = None
