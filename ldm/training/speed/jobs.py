"""The jobs of the speed benchmark: groups of variants, each compared with the first of its group."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

RECIPE = "configs/dreambooth.yaml"
CONFIGS = {
    "toy": (RECIPE,),
    "sd-v1": (RECIPE, "configs/stable-diffusion/v1.yaml"),
    "sd-v2": (RECIPE, "configs/stable-diffusion/v2.yaml"),
    "sd-xl": (RECIPE, "configs/stable-diffusion/xl.yaml"),
}
"""Config files of each model."""

GROUPS = (
    "machine",
    "step",
    "step-bf16",
    "whole",
    "whole-bf16",
    "lean",
    "memory",
    "prior",
    "txt2img",
    "shortcuts",
    "checkpoint",
    "start-up",
    "processes",
)


@dataclass(frozen=True)
class Job:
    """One variant to measure. The measuring process gets it as JSON."""

    group: str
    variant: str
    """Name in the table; empty if the measurement names its own rows."""
    measure: str
    """Name of a function in `ldm.training.speed.measures`."""
    base: str
    """Base model: a folder, absolute or relative to the repository."""
    size: int | None
    """Side of the images, px; None for the recipe's."""
    configs: Sequence[str]
    overrides: Sequence[str]
    """Config overrides, as on main.py's command line."""
    warm: int
    """Warm-up repeats, not timed."""
    repeats: int
    """Timed repeats."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the process."""
    trace: str | None = None
    """File for a profile of the timed training steps; None: no profile."""
    gpu_gigabytes: float | None = None
    """What torch may take of a GPU's memory; None: all of it."""


@dataclass(frozen=True)
class Plan:
    """Settings that all jobs of a benchmark share."""

    model: str
    """A key of CONFIGS."""
    base: str
    size: int | None
    repeats: int
    gpu: bool
    quick: bool
    """Only check that everything runs."""
    gpu_gigabytes: float | None = None
    """For the group memory: see `Job`."""
    overrides: Sequence[str] = ()
    """Config overrides of every variant; a variant's own win."""


WITHOUT_AVERAGE = "model.params.ema=null"
"""For comparisons with loops that have no average of the weights."""

Change = tuple[list[str], list[str]]
"""Overlays and overrides that turn the recipe into a variant."""

LEAN: dict[str, Change] = {
    "AdamW not fused": ([], ["model.params.optimizer.params.fused=false"]),
    "gradient checkpointing": ([], ["model.params.gradient_checkpointing=true"]),
    "frozen text encoder": (["configs/frozen-text-encoder.yaml"], []),
    "LoRA": (["configs/lora.yaml"], []),
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
"""Single changes that save memory or time."""

PLAIN = ["model.params.cuda_graphs=false"]
ON_A_GPU: dict[str, Change] = {
    "TF32 products": ([], ["model.params.tf32=true"]),
    "fp16 autocast": ([], ["lightning.trainer.precision=16-mixed"]),
    "gpu-speed.yaml": (["configs/gpu-speed.yaml"], []),
    "gpu-speed.yaml, neither recorded nor compiled": (["configs/gpu-speed.yaml"], PLAIN),
    "gpu-speed.yaml, compiled instead": (["configs/gpu-speed.yaml"], [*PLAIN, "model.params.compile=true"]),
}

SMALLER: dict[str, Change] = {
    "the recipe": ([], []),
    "low-memory.yaml": (["configs/low-memory.yaml"], []),
    "low-memory.yaml, bf16-weights.yaml": (["configs/low-memory.yaml", "configs/bf16-weights.yaml"], []),
}
"""Complete recipes that need less memory."""

ADAPTERS: dict[str, Change] = {
    "lora.yaml": (["configs/lora.yaml"], ["data.params.prior.precision=fp32"]),
    "lora.yaml, stable-diffusion/lora-low-memory.yaml": (
        ["configs/lora.yaml", "configs/stable-diffusion/lora-low-memory.yaml"],
        ["data.params.prior.precision=bf16"],
    ),
}
"""Recipes whose untrained model is the trained one with its adapter switched off, in the same precision."""

SMALLER_XL: dict[str, Change] = {
    "xl.yaml": ([], []),
    "xl.yaml, bf16-weights.yaml": (["configs/bf16-weights.yaml"], []),
    "xl-lora.yaml": (["configs/stable-diffusion/xl-lora.yaml"], []),
}
"""Recipes of Stable Diffusion XL."""

WITH_BITSANDBYTES = {"8-bit AdamW", *SMALLER} - {"the recipe"}
"""Variants that are left out if bitsandbytes is not installed."""

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
    steps, short = recipe(group, plan), few_repeats(group, plan)
    if group == "machine":
        yield replace(short, measure="machine")
    elif group in ("step", "step-bf16"):
        steps = at_precision(group, plan, replace(steps, overrides=[*steps.overrides, WITHOUT_AVERAGE]))
        yield replace(steps, variant="as diffusers' script", measure="script_step")
        if group == "step":
            yield replace(steps, variant="plain loop", measure="plain_step")
        yield replace(steps, variant="this project")
    elif group in ("whole", "whole-bf16"):
        few = ["data.params.prior.count=2", "lightning.trainer.max_steps=1"] if plan.quick else []
        whole = at_precision(group, plan, whole_recipe(short, plan))
        whole = replace(whole, overrides=[*whole.overrides, WITHOUT_AVERAGE, *few], repeats=1, warm=0)
        yield replace(whole, variant="as diffusers' script", measure="whole_script")
        yield replace(whole, variant="this project", measure="whole_run")
    elif group == "lean":
        yield replace(steps, variant="the recipe")
        yield from variants(steps, LEAN | (ON_A_GPU if plan.gpu else {}))
    elif group == "memory":
        yield from memory_jobs(short, plan)
    elif group == "prior":
        whole = replace(whole_recipe(short, plan), measure="prior")
        yield replace(whole, variant="the recipe")
        yield from variants(whole, {name: ([], overrides) for name, overrides in PRIOR.items()})
    elif group == "processes":
        cpu = "lightning.trainer.accelerator=cpu"
        alone = replace(steps, overrides=[*steps.overrides, cpu], environment={"OMP_NUM_THREADS": "1"})
        two = ["lightning.trainer.strategy=ddp", "lightning.trainer.devices=2"]
        yield replace(alone, variant="one process")
        yield replace(alone, variant="two processes", overrides=[*alone.overrides, *two])
    else:
        yield replace(short, measure=group.replace("-", "_"))


def memory_jobs(short: Job, plan: Plan) -> Iterator[Job]:
    """The jobs of the group memory: short runs; of sd-xl without a GPU, counts on tensors without data."""
    as_run = replace(whole_recipe(short, plan), measure="memory", gpu_gigabytes=plan.gpu_gigabytes)
    if plan.model == "sd-xl":
        counted = replace(short, measure="memory_without_data")
        yield from variants(as_run if plan.gpu else counted, SMALLER_XL)
    else:
        # At full size each variant takes 15 minutes on a CPU.
        affordable = plan.gpu or plan.model == "toy"
        yield from variants(as_run, SMALLER | ADAPTERS | (LEAN if affordable else {}))


def at_precision(group: str, plan: Plan, job: Job) -> Job:
    """`job` in the precision that the group's name says; both sides of a comparison get the same."""
    if not group.endswith("-bf16"):
        return job
    overlay = "configs/gpu-speed.yaml" if plan.gpu and plan.model != "toy" else "configs/bf16.yaml"
    return replace(job, configs=[*job.configs, overlay])


def recipe(group: str, plan: Plan) -> Job:
    """Training steps of the recipe, with as few prior samples and sampling steps as possible."""
    overrides = ["data.params.prior.count=8", "data.params.prior.chunk_size=8", "data.params.prior.steps=1"]
    return Job(
        group,
        variant="",
        measure="training_step",
        base=plan.base,
        size=plan.size,
        configs=CONFIGS[plan.model],
        overrides=[*base_overrides(plan), *overrides],
        warm=1 if plan.quick else 3,
        repeats=plan.repeats,
    )


def few_repeats(group: str, plan: Plan) -> Job:
    """The same with few repeats, for measurements that take longer than a step."""
    return replace(recipe(group, plan), warm=1, repeats=min(plan.repeats, 6))


def whole_recipe(job: Job, plan: Plan) -> Job:
    """`job` with the recipe's own settings for prior samples."""
    # fp16 convolutions take minutes on a CPU; bf16 needs the same memory.
    quick = ["data.params.prior.steps=1"] if plan.quick else []
    half = ["data.params.prior.precision=bf16"] if plan.model != "toy" and not plan.gpu else []
    return replace(job, overrides=[*base_overrides(plan), *half, *quick])


def base_overrides(plan: Plan) -> list[str]:
    """The plan's base and size as config overrides, and its own."""
    size = [f"data.params.size={plan.size}"] if plan.size else []
    return [f"model.params.base={plan.base}", *size, *plan.overrides]


def variants(job: Job, changes: Mapping[str, Change]) -> Iterator[Job]:
    """`job` with each of `changes`."""
    for variant, (configs, overrides) in changes.items():
        yield replace(
            job, variant=variant, configs=[*job.configs, *configs], overrides=[*job.overrides, *overrides]
        )


def one_of_each(jobs: Sequence[Job]) -> list[Job]:
    """A few jobs to check that everything runs: the first of each group, all of those with an opponent in fp32.

    Those in bf16 are the same work again, so they are left out where there are others.
    """
    jobs = [job for job in jobs if not job.group.endswith("-bf16")] or jobs
    first = {job.group: job for job in reversed(jobs)}
    return [job for job in jobs if job.group in ("step", "whole") or job is first[job.group]]
