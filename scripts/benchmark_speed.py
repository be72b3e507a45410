"""Speed and memory: `python scripts/benchmark_speed.py --model toy --out benchmark.json`.

Every variant runs in a process of its own, one after the other, round after round; a ratio is the median over
rounds of first variant / this variant within the round, so that a machine that slows down slows both. sd-v1 and
sd-v2 are the full architectures with random weights, made once under .cache/ without a download.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

from ldm.command_line import Parser  # noqa: E402
from ldm.errors import UserError, exit_code_of  # noqa: E402
from ldm.values import Count, option  # noqa: E402

RECIPE = "configs/dreambooth.yaml"
CONFIGS = {
    "toy": [RECIPE],
    "sd-v1": [RECIPE, "configs/stable-diffusion/v1.yaml"],
    "sd-v2": [RECIPE, "configs/stable-diffusion/v2.yaml"],
}
GROUPS = ("machine", "step", "lean", "memory", "prior", "txt2img", "checkpoint", "start-up", "processes")

Job = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=CONFIGS, default="toy")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, help="what to measure")
    parser.add_argument(
        "--rounds", type=option(Count), default=3, help="of every variant, one after the other"
    )
    parser.add_argument("--repeats", type=option(Count), default=20, help="timed steps, or calls, a round")
    parser.add_argument("--size", type=option(Count), help="px (default: the recipe's)")
    parser.add_argument("--out", type=Path, help="also write every figure there, as JSON")
    parser.add_argument(
        "--profile", metavar="TRACE.json", help="also profile a training step: Chrome trace, and .txt"
    )
    parser.add_argument(
        "--quick", action="store_true", help="see within a minute that it runs: its figures mean little"
    )
    return exit_code_of(run, parser.parse_args(argv))


def run(options: argparse.Namespace) -> None:
    """Measure, print the table, write the JSON."""
    from tqdm import tqdm

    if options.quick:
        options.rounds, options.repeats = 1, 1
    base = base_of(options.model)
    jobs = [job for group in options.only for job in jobs_of(group, options, base)]
    if not find_spec("bitsandbytes"):
        jobs = [job for job in jobs if job["variant"] not in WITH_BITSANDBYTES]
    turns = in_one_process(jobs) if options.quick else [[job] for job in jobs]
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=options.rounds * len(turns), desc="measuring", unit="process", file=sys.stderr) as bar,
    ):
        for number in range(options.rounds):
            for index, turn in enumerate(turns):
                bar.set_postfix_str(f"{turn[0]['group']}: {turn[0]['variant']}")
                for row in measured(turn, Path(folder) / f"{number}-{index}.json"):
                    rows.setdefault((row["group"], row["variant"]), []).append(row)
                bar.update()
        if options.profile:
            step = next(job for job in jobs_of("step", options, base) if job["measure"] == "training_step")
            measured([{**step, "profile": options.profile}], Path(folder) / "profile.json")
        summary = summarize(rows)
    print(table(summary, options))
    if options.out:
        about = {"model": options.model, "date": str(date.today()), "machine": machine_name()}
        options.out.write_text(json.dumps({**about, "rows": summary}, indent=1) + "\n")


def jobs_of(group: str, options: argparse.Namespace, base: str) -> Iterator[Job]:
    """What to measure in `group`; the first is what the others are held against."""
    size = [f"data.params.size={options.size}"] if options.size else []
    recipe = {
        "configs": CONFIGS[options.model],
        "words": [f"model.params.base={base}", "data.params.prior.count=8", "data.params.prior.chunk_size=8",
                  "data.params.prior.steps=1", *size],
        "warm": 1 if options.quick else 3,
        "repeats": options.repeats,
    }  # fmt: skip
    few = {**recipe, "repeats": min(options.repeats, 6), "warm": 1}
    # Convolutions in fp16 take a CPU minutes; bf16 takes as much memory.
    half = ["data.params.prior.precision=bf16"] if options.model != "toy" and not has_gpu() else []
    whole = {**few, "words": [f"model.params.base={base}", *size, *half]}

    def job(
        variant: str, measure: str, kind: Job, *words: str, configs: Sequence[str] = (), **more: Any
    ) -> Job:
        return {
            **kind,
            "group": group,
            "variant": variant,
            "measure": measure,
            "words": [*kind["words"], *words],
            "configs": [*kind["configs"], *configs],
            **more,
        }

    if group == "machine":
        yield job("", "machine", few)
    elif group == "step":
        yield job("plain loop", "plain_step", recipe)
        yield job("this project", "training_step", recipe)
    elif group == "lean":
        yield job("the recipe", "training_step", recipe)
        for variant, (configs, words) in (LEAN | (ON_A_GPU if has_gpu() else {})).items():
            yield job(variant, "training_step", recipe, *words, configs=configs)
    elif group == "memory":
        quick = has_gpu() or options.model == "toy"  # of full size, each takes a CPU a quarter of an hour
        for variant, (configs, words) in (SMALLER | (LEAN if quick else {})).items():
            yield job(variant, "memory", whole, *words, configs=configs)
    elif group == "prior":
        yield job("the recipe", "prior", whole)
        for variant, words in PRIOR.items():
            yield job(variant, "prior", whole, *words)
    elif group == "txt2img":
        size_of = {"size": options.size} if options.size else {}
        picture = {
            "base": base,
            "images": 4,
            "steps": 20,
            "scale": 4.0,
            "prompt": "a photo of a dog",
            **size_of,
        }
        picture["dtype"] = "fp16" if has_gpu() else "fp32"
        yield job("", "txt2img", few, **picture)
    elif group == "checkpoint":
        yield job("", "checkpoint", few)
    elif group == "start-up":
        yield job("", "start_up", few)
    elif group == "processes":
        one_thread = {"env": {"OMP_NUM_THREADS": "1"}}
        words = ["lightning.trainer.accelerator=cpu", "lightning.trainer.strategy=ddp"]
        yield job("one process", "training_step", recipe, *words[:1], **one_thread)
        yield job(
            "two processes", "training_step", recipe, *words, "lightning.trainer.devices=2", **one_thread
        )


NOT_FUSED = "model.params.optimizer.params.fused=false"
LEAN: dict[str, tuple[list[str], list[str]]] = {
    "AdamW not fused": ([], [NOT_FUSED]),
    "gradient checkpointing": ([], ["model.params.gradient_checkpointing=true"]),
    "frozen text encoder": (["configs/frozen-text-encoder.yaml"], []),
    "bf16 autocast": (["configs/bf16.yaml"], []),
    "bf16 weights": (["configs/bf16-weights.yaml"], []),
    "8-bit AdamW": ([], ["model.params.optimizer.target=bitsandbytes.optim.AdamW8bit",
                         "model.params.optimizer.params={weight_decay: 0.01}"]),
}  # fmt: skip
"""What saves memory or time, one thing at a time: overlays and words."""

ON_A_GPU: dict[str, tuple[list[str], list[str]]] = {"TF32 products": ([], ["model.params.tf32=true"])}

SMALLER: dict[str, tuple[list[str], list[str]]] = {
    "the recipe": ([], []),
    "low-memory.yaml": (["configs/low-memory.yaml"], []),
    "low-memory.yaml, bf16-weights.yaml": (["configs/low-memory.yaml", "configs/bf16-weights.yaml"], []),
}
"""Recipes that are for less memory as a whole."""

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


def in_one_process(jobs: Sequence[Job]) -> list[list[Job]]:
    """The jobs to see that everything runs: one variant a group, but two where two are to be compared."""
    several = {"step"}
    first = {job["group"]: job for job in reversed(jobs)}
    kept = [job for job in jobs if job["group"] in several or job is first[job["group"]]]
    return [kept] if kept else []


def measured(jobs: Sequence[Job], out: Path) -> list[dict[str, Any]]:
    """The rows of `jobs`, done in a process of their own."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [
        sys.executable,
        str(PROJECT / "scripts" / "benchmark_speed_one.py"),
        json.dumps(jobs),
        str(out),
    ]
    done = subprocess.run(command, env=environment | jobs[0].get("env", {}), capture_output=True, text=True)
    if not out.exists():
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        names = ", ".join(f"{job['group']} {job['variant']}".strip() for job in jobs)
        raise UserError(f"measuring {names} failed: {lines[-1]}")
    return json.loads(out.read_text())


def summarize(rows: dict[tuple[str, str], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Per variant: median and range over rounds, ratio to its group's first, share of the machine's rates."""
    rates = {variant: work(found[0]) / statistics.median(r["seconds"] for r in found)
             for (group, variant), found in rows.items() if group == "machine"}  # fmt: skip
    first = {}
    summary = []
    for (group, variant), found in rows.items():
        seconds = [row["seconds"] for row in found]
        first.setdefault(group, found)
        median = statistics.median(seconds)
        line = {
            "group": group,
            "variant": variant,
            "seconds": median,
            "least": min(seconds),
            "most": max(seconds),
        }
        line["peak_bytes"] = max((row["peak_bytes"] for row in found if "peak_bytes" in row), default=None)
        if group not in ("machine", "memory"):
            pairs = zip(first[group], found, strict=True)
            line["times_as_fast"] = statistics.median(speed(ours) / speed(theirs) for theirs, ours in pairs)
        if found[0].get("images"):
            line["images_per_second"] = found[0]["images"] / median
        if found[0].get("flops"):
            line["flops"] = found[0]["flops"]
            products = [rate for name, rate in rates.items() if "matmul" in name and "float32" in name]
            if products and group != "machine":
                line["share_of_fp32_matmul"] = line["flops"] / median / products[0]
        if found[0].get("bytes"):
            line["bytes_per_second"] = found[0]["bytes"] / median
            copies = [rate for name, rate in rates.items() if "copy" in name]
            if copies and group != "machine":
                line["share_of_copy"] = line["bytes_per_second"] / copies[0]
        if "pictures" in found[0]:
            line["largest_difference"] = difference(first[group][0]["pictures"], found[0]["pictures"])
        summary.append(line)
    return summary


def work(row: dict[str, Any]) -> float:
    """FLOPs or bytes of a repeat."""
    return row.get("flops") or row["bytes"]


def speed(row: dict[str, Any]) -> float:
    """Images a second, or repeats where there are no images."""
    return (row.get("images") or 1) / row["seconds"]


def difference(ours: str, theirs: str) -> int:
    """Largest difference of two files of pictures, in levels of 255."""
    import numpy as np

    return int(np.abs(np.load(ours).astype(int) - np.load(theirs).astype(int)).max())


def table(summary: Sequence[dict[str, Any]], options: argparse.Namespace) -> str:
    """The figures as a Markdown table."""
    lines = [
        f"{options.model} on {machine_name()}, {date.today()}; {options.rounds} rounds of {options.repeats} repeats",
        "",
        "| what | variant | ms (least to most) | times as fast | images/s | GFLOP | of fp32 matmul | peak GB | note |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in summary:
        spread = f"{1e3 * row['seconds']:.0f} ({1e3 * row['least']:.0f} to {1e3 * row['most']:.0f})"
        note = ""
        if row["group"] == "machine" and "flops" in row:
            note = f"{row['flops'] / row['seconds'] / 1e12:.2f} TFLOP/s"
        elif "bytes_per_second" in row:
            note = f"{row['bytes_per_second'] / 1e9:.2f} GB/s"
            if "share_of_copy" in row:
                note += f", {row['share_of_copy']:.0%} of the copy's"
        elif "largest_difference" in row:
            note = f"pictures differ by {row['largest_difference']}/255"
        cells = [
            row["group"], row["variant"], spread,
            shown(row.get("times_as_fast"), "{:.2f}"), shown(row.get("images_per_second"), "{:.1f}"),
            shown(row.get("flops"), "{:.1f}", 1e9), shown(row.get("share_of_fp32_matmul"), "{:.0%}"),
            shown(row.get("peak_bytes"), "{:.2f}", 1e9), note,
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def shown(value: float | None, pattern: str, unit: float = 1) -> str:
    """`value` in `unit`, or nothing."""
    return "" if value is None else pattern.format(value / unit)


def base_of(model: str) -> str:
    """The base to measure on; random weights of the full architecture are made the first time."""
    if model == "toy":
        return "assets/base"
    folder = PROJECT / ".cache" / f"random-{model}"
    if not folder.exists():
        from ldm.formats.random_base import write_random_base

        print(f"writing random weights to {folder}", file=sys.stderr)
        write_random_base(PROJECT / "configs" / "stable-diffusion" / model.removeprefix("sd-"), folder)
    return str(folder)


def has_gpu() -> bool:
    """Whether torch sees a GPU."""
    import torch

    return torch.cuda.is_available()


def machine_name() -> str:
    """GPU, or processor and number of cores, and torch's version."""
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
        model = names[0].split(":")[1].strip() if names else model
    return f"{os.cpu_count()} cores of {model}, torch {torch.__version__}"


if __name__ == "__main__":
    sys.exit(main())
