"""What the speed benchmark measures: groups of variants; the others of a group are compared with its first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

RECIPE = "configs/dreambooth.yaml"
CONFIGS = {
    "toy": (RECIPE,),
    "sd-v1": (RECIPE, "configs/stable-diffusion/v1.yaml"),
    "sd-v2": (RECIPE, "configs/stable-diffusion/v2.yaml"),
}
"""Configs by the name of the model."""

GROUPS = ("machine", "step", "lean", "memory", "prior", "txt2img", "checkpoint", "start-up", "processes")


@dataclass(frozen=True)
class Job:
    """One variant to measure. Goes to the process that measures it as JSON."""

    group: str
    variant: str
    """Name in the table; empty where the measurement names its own rows."""
    measure: str
    """Name of a function in `ldm.training.speed.measures`."""
    base: str
    """Base model: folder, or place in the repository."""
    size: int | None
    """Side of the images, px; None for the recipe's."""
    configs: Sequence[str]
    words: Sequence[str]
    """Changes to the configs, as on main.py's command line."""
    warm: int
    """Untimed repeats before the timed ones."""
    repeats: int
    """Timed repeats."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables of the process."""
    trace: str | None = None
    """Where to write a profile of the timed training steps; None: they are not profiled."""


@dataclass(frozen=True)
class Plan:
    """What all jobs of a benchmark have in common."""

    model: str
    """A key of CONFIGS."""
    base: str
    size: int | None
    repeats: int
    gpu: bool
    quick: bool
    """Only to see that everything runs."""


Change = tuple[list[str], list[str]]
"""Overlays and words that make a variant of the recipe."""

LEAN: dict[str, Change] = {
    "AdamW not fused": ([], ["model.params.optimizer.params.fused=false"]),
    "gradient checkpointing": ([], ["model.params.gradient_checkpointing=true"]),
    "frozen text encoder": (["configs/frozen-text-encoder.yaml"], []),
    "bf16 autocast": (["configs/bf16.yaml"], []),
    "bf16 weights": (["configs/bf16-weights.yaml"], []),
    "8-bit AdamW": (
        [],
        [
            "model.params.optimizer.target=bitsandbytes.optim.AdamW8bit",
            "model.params.optimizer.params={weight_decay: 0.01}",
        ],
    ),
}
"""What saves memory or time, one thing at a time."""

ON_A_GPU: dict[str, Change] = {"TF32 products": ([], ["model.params.tf32=true"])}

SMALLER: dict[str, Change] = {
    "the recipe": ([], []),
    "low-memory.yaml": (["configs/low-memory.yaml"], []),
    "low-memory.yaml, bf16-weights.yaml": (["configs/low-memory.yaml", "configs/bf16-weights.yaml"], []),
}
"""Whole recipes for less memory."""

WITH_BITSANDBYTES = {"8-bit AdamW", *SMALLER} - {"the recipe"}
"""Variants that are left out where that package is not installed."""

PRIOR: dict[str, list[str]] = {
    "chunks of 4": ["data.params.prior.chunk_size=4"],
    "chunks of 64": ["data.params.prior.chunk_size=64"],
    "no guidance": ["data.params.prior.guidance_scale=1.0"],
    "guided for the middle of the noise levels": ["data.params.prior.guidance_interval=[200,800]"],
    "ancestral sampler, 50 steps": ["data.params.prior.sampler=ddpm", "data.params.prior.steps=50"],
    "frozen copy in bf16": ["data.params.prior.precision=bf16"],
}
"""Ways to draw a chunk of prior samples."""


def jobs_of(group: str, plan: Plan) -> Iterator[Job]:
    """The jobs of a group."""
    steps, short = recipe(group, plan), few(group, plan)
    if group == "machine":
        yield replace(short, measure="machine")
    elif group == "step":
        yield replace(steps, variant="plain loop", measure="plain_step")
        yield replace(steps, variant="this project")
    elif group == "lean":
        yield replace(steps, variant="the recipe")
        yield from variants(steps, LEAN | (ON_A_GPU if plan.gpu else {}))
    elif group == "memory":
        whole = replace(whole_recipe(short, plan), measure="memory")
        # At full size each variant takes a CPU a quarter of an hour.
        affordable = plan.gpu or plan.model == "toy"
        yield from variants(whole, SMALLER | (LEAN if affordable else {}))
    elif group == "prior":
        whole = replace(whole_recipe(short, plan), measure="prior")
        yield replace(whole, variant="the recipe")
        yield from variants(whole, {name: ([], words) for name, words in PRIOR.items()})
    elif group == "processes":
        cpu = "lightning.trainer.accelerator=cpu"
        alone = replace(steps, words=[*steps.words, cpu], environment={"OMP_NUM_THREADS": "1"})
        two = ["lightning.trainer.strategy=ddp", "lightning.trainer.devices=2"]
        yield replace(alone, variant="one process")
        yield replace(alone, variant="two processes", words=[*alone.words, *two])
    else:
        yield replace(short, measure=group.replace("-", "_"))


def recipe(group: str, plan: Plan) -> Job:
    """Training steps of the recipe, with next to no time for prior samples."""
    words = ["data.params.prior.count=8", "data.params.prior.chunk_size=8", "data.params.prior.steps=1"]
    return Job(
        group,
        variant="",
        measure="training_step",
        base=plan.base,
        size=plan.size,
        configs=CONFIGS[plan.model],
        words=[*base_words(plan), *words],
        warm=1 if plan.quick else 3,
        repeats=plan.repeats,
    )


def few(group: str, plan: Plan) -> Job:
    """The same with few repeats, for what takes longer than a step."""
    return replace(recipe(group, plan), warm=1, repeats=min(plan.repeats, 6))


def whole_recipe(job: Job, plan: Plan) -> Job:
    """`job` with the recipe's own prior samples."""
    # Convolutions in fp16 take a CPU minutes; bf16 takes as much memory.
    quick = ["data.params.prior.steps=1"] if plan.quick else []
    half = ["data.params.prior.precision=bf16"] if plan.model != "toy" and not plan.gpu else []
    return replace(job, words=[*base_words(plan), *half, *quick])


def base_words(plan: Plan) -> list[str]:
    """The plan's base and size as changes to the configs."""
    return [f"model.params.base={plan.base}", *([f"data.params.size={plan.size}"] if plan.size else [])]


def variants(job: Job, changes: Mapping[str, Change]) -> Iterator[Job]:
    """`job` with each of `changes`."""
    for variant, (configs, words) in changes.items():
        yield replace(job, variant=variant, configs=[*job.configs, *configs], words=[*job.words, *words])


def one_of_each(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that only show that everything runs: one variant a group, two where variants are compared."""
    first = {job.group: job for job in reversed(jobs)}
    return [job for job in jobs if job.group == "step" or job is first[job.group]]
