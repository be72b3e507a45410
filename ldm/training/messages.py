"""The messages of a run: at its start the plan, at its end the results."""

import os
import time
from pathlib import Path

import torch
from pytorch_lightning import LightningDataModule, LightningModule, Trainer

from ldm.data.images import image_files, mask_path
from ldm.data.subject import SubjectImages
from ldm.errors import quoted
from ldm.files import find
from ldm.formats.checkpoint_files import BEST
from ldm.training.rows import read_rows
from ldm.training.step_callback import samples_per_step

VALIDATION = "validation.jsonl"


def duration(seconds: float) -> str:
    """`seconds` in readable form: "8 s", "1 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def introduction(
    folder: Path, data: LightningDataModule, model: LightningModule, trainer: Trainer, step: int | None
) -> str:
    """Lines about a run that is about to start, or to continue from `step`."""
    lines = {"run folder": str(folder), "device": device_of(trainer)}
    if hasattr(model, "base"):
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        lines["base"] = f"{model.base}; {trained:,} parameters train"
    concepts = getattr(data, "concepts", ())
    for concept, images in zip(concepts, getattr(data, "subjects", ()), strict=True):
        of_it = f" {concept.placeholder}" if len(concepts) > 1 else ""
        lines[f"subject{of_it}"] = photographs(concept.data_root, images)
        own = (
            f"one of {len(images.templates)} templates"
            if images.templates
            else f"'{model.with_identifier(concept.prompt)}'"
        )
        lines[f"prompts{of_it}"] = f"{own} for it, '{concept.prior_prompt}' for its class"
    per_step = samples_per_step(data, trainer)
    start = f", continuing from step {step}" if step else ""
    lines["steps"] = f"{trainer.max_steps:,} of {per_step} samples each{start}"
    width = max(12, *(len(name) + 2 for name in lines))
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())


def device_of(trainer: Trainer) -> str:
    """The device and precision of a run."""
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = f"{trainer.world_size} x {torch.cuda.get_device_name(device)}"
    else:
        name = f"{device.type}, {torch.get_num_threads()} threads"
    advice = "" if device.type == "cuda" else advice_on_threads(torch.get_num_threads())
    return f"{name}, {trainer.precision}{advice}"


def advice_on_threads(threads: int) -> str:
    """What helps if other work shares the cores; empty if none seems to.

    OpenMP's threads wait for each other by spinning, which takes the time of the one that is waited for.
    """
    if threads == 1:
        return ""
    busy, cores = busy_cores(), os.cpu_count() or 1
    if busy < 0.8 or busy + threads <= cores:
        return ""
    return f" (other work keeps {busy:.1f} of {cores} cores busy: beside it OMP_NUM_THREADS=1 is faster)"


def busy_cores(seconds: float = 0.2) -> float:
    """How many cores work while this process waits for `seconds`; without /proc/stat, the last minute's load.

    A load average would count work for up to a minute after it has ended.
    """
    if not Path("/proc/stat").exists():
        return os.getloadavg()[0]
    before = core_times()
    time.sleep(seconds)
    idle, total = (after - earlier for earlier, after in zip(before, core_times(), strict=True))
    return (os.cpu_count() or 1) * (1 - idle / total) if total else 0.0


def core_times() -> tuple[int, int]:
    """Ticks of all cores since the machine started: idle or waiting for a disk, and in all."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[3] + ticks[4], sum(ticks)


def photographs(folder: Path, images: SubjectImages) -> str:
    """How many photographs there are, how many of them are held out, and how many other files are skipped."""
    used = image_files(folder)
    place = find(folder)
    read = {*used, *(caption.source for caption in images.captions if caption)}
    if images.unmasked_weight != 1:
        read |= {mask_path(path) for path in used}
    files = (path for path in place.iterdir() if path.is_file() and not path.name.startswith("."))
    others = sum(path not in read for path in files)
    held_out = len(used) - len(images.files)
    return (
        f"{len(used)} photographs in {folder}"
        + (f", {held_out} of them held out" if held_out else "")
        + (f"; {others} other files skipped" if others else "")
    )


def results(folder: Path, seconds: float) -> str:
    """The validation results of the run in `folder`; "" if there are none.

    seconds: how long this start of the run took.
    """
    rows = read_rows(folder / VALIDATION)
    if len(rows) < 2 or not {"subject_loss", "score"} <= rows[0].keys() & rows[-1].keys():
        return ""
    first, last, best = rows[0], rows[-1], min(rows[1:], key=lambda row: row["score"])
    verb = "fell" if last["subject_loss"] < first["subject_loss"] else "rose"
    kept = f", kept in {Path('checkpoints', BEST)}" if (folder / "checkpoints" / BEST).is_file() else ""
    lines = [
        f"trained in {duration(seconds)}; validation:",
        f"  subject loss {verb} from {first['subject_loss']:.4f} to {last['subject_loss']:.4f}",
    ]
    what = "score, of the subject loss alone"
    if "drift" in last:
        lines.append(f"  drift of the class from the base: {last['drift']:.4f} (0: none)")
        what = "score, the sum of the two"
    found = f"{last['score']:.4f}; the best {best['score']:.4f} at step {best['step']}{kept}"
    return "\n".join([*lines, f"  {what} (lower is better): {found}"])


def next_steps(folder: Path) -> str:
    """How to evaluate a run that has drawn samples, and where to look; "" for other runs."""
    sheets = sorted((folder / "images").glob("step-*.png"))
    if not sheets:
        return ""
    page = folder / "report.html"
    look = f"{page}, or {sheets[-1]}" if page.is_file() else str(sheets[-1])
    return f"Measure it with\n  python scripts/evaluate.py --ckpt {quoted(folder)}\nLook at {look}"
