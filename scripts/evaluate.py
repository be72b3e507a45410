"""Measure a learned subject as the DreamBooth paper does: `python scripts/evaluate.py --ckpt logs/<run>`.

Draws the protocol's images (25 prompts x 4, and images of the bare class) from fixed seeds, or takes images
made elsewhere (`--images FOLDER`), and writes metrics.json, images.csv and report.html. Images that are there
already are not drawn again, so an interrupted evaluation goes on where it was.
"""

import argparse
import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import add_trust
from ldm.errors import UserError, exit_code_of
from ldm.values import NonNegativeInt, option

PROJECT = Path(__file__).resolve().parents[1]
CONFIG = PROJECT / "configs" / "evaluation.yaml"
EMBEDDED_SIDE = 64
"""Side of the embedded world's pictures, px."""


@dataclass
class Subject:
    """What is evaluated, against which photographs."""

    class_word: str
    references: dict[str, list[Path]]
    note: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    return exit_code_of(run, parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Words that are no option are config overrides, `key.sub=value`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt", type=Path, help="run folder, .ckpt of a run, exported model, or a plain base")
    what.add_argument(
        "--images", type=Path, help="folder of images made elsewhere; see ldm/evaluation/folder.py"
    )
    parser.add_argument("--class_images", type=Path, help="with --images: folder of images of the bare class")
    parser.add_argument("--real", type=Path, help="folder of the subject's photographs (default: the run's)")
    parser.add_argument(
        "--hold_out",
        type=option(NonNegativeInt),
        default=0,
        help="with --real: how many of them, the last ones, to score by",
    )
    parser.add_argument("--class_word", help="the subject's class noun (default: the run's)")
    parser.add_argument("--identifier", help="the word for the subject (default: the run's)")
    parser.add_argument(
        "--prompt_noun", help="noun in the prompts drawn from, '' for none (class-noun ablation)"
    )
    parser.add_argument(
        "--config", type=Path, nargs="*", default=[], metavar="YAML", help=f"overlays over {CONFIG.name}"
    )
    parser.add_argument("--outdir", type=Path, help="default: <run>/evaluation, or outputs/evaluation")
    parser.add_argument(
        "--precision", choices=("full", "autocast", "fp32", "fp16", "bf16"), help="as txt2img's"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU where there is one)")
    add_trust(parser)
    parser.add_argument(
        "overrides", nargs="*", default=[], metavar="key.sub=value", help="config keys to change"
    )
    options, rest = parser.parse_known_args(argv)
    if unknown := [word for word in rest if word.startswith("-")]:
        parser.error(f"unknown option {unknown[0]}")
    words = [path for path in options.config if "=" in str(path)]
    options.config = [path for path in options.config if path not in words]
    options.overrides = [*map(str, words), *options.overrides, *rest]
    return options


def run(options: argparse.Namespace) -> None:
    """Draw or find the images, score them, write the result."""
    from ldm.config import load_settings
    from ldm.devices import choose_device
    from ldm.evaluation.features import load_networks
    from ldm.evaluation.protocol import prompt_set
    from ldm.evaluation.scores import Networks, score
    from ldm.evaluation.settings import EvaluationSettings

    config = load_settings([CONFIG, *options.config], EvaluationSettings, options.overrides)
    device = choose_device(options.device)
    networks = Networks(*load_networks(config["networks"], device), config["networks"]["diversity"])
    if options.ckpt:
        subject, items, about, out = drawn_images(options, config, networks, device)
    else:
        subject, items, about, out = given_images(options, config)
    result, rows = score(items, subject.references, networks, config["sampling"]["images_per_prompt"], out)
    result = {
        "about": {
            **about,
            "class_word": subject.class_word,
            "prompts": prompt_set(config, subject.class_word) if options.ckpt else "as given",
            "sampling": config["sampling"] if options.ckpt else None,
            "real_images": {
                name: [path.name for path in paths] for name, paths in subject.references.items()
            },
            "note": subject.note,
        },
        **result,
    }
    real = next(iter(subject.references.values()))
    published = [row for row in config["published"] if row["table"] != 4]  # the ablation is the benchmark's
    write(out, result, rows, real, published)
    print(table(result, published))
    print(f"{subject.note}\n{out / 'report.html'}")


def drawn_images(
    options: argparse.Namespace, config: Mapping[str, Any], networks: Any, device: Any
) -> tuple[Subject, list[Any], dict[str, Any], Path]:
    """Subject, the protocol's images drawn by --ckpt, facts about the model, output folder."""
    from ldm.devices import choose_dtype
    from ldm.evaluation.protocol import plan
    from ldm.formats.checkpoint_files import newest_checkpoint
    from ldm.formats.fingerprint import file_hash
    from ldm.methods.load import load_for_sampling

    path = newest_checkpoint(options.ckpt) if (options.ckpt / "checkpoints").is_dir() else options.ckpt
    loaded = load_for_sampling(path, device, trust=options.trust)
    loaded.identifier = options.identifier or loaded.identifier
    subject = find_subject(options, loaded.class_word)
    folder = run_folder(options.ckpt)
    out = options.outdir or (folder / "evaluation" if folder else Path("outputs", "evaluation"))
    about = {
        "model": str(options.ckpt),
        "weights": file_hash(path) if path.is_file() else loaded.model.fingerprint,
        "step": loaded.step,
        "identifier": loaded.identifier,
    }
    check_worlds(networks, loaded.model)
    items = plan(config, subject.class_word, out, options.prompt_noun, learned=loaded.identifier is not None)
    loaded.model.for_sampling(device, choose_dtype(options.precision, device))
    known_by = {"weights": about["weights"], "precision": str(loaded.model.unet.dtype)}
    draw(loaded, items, config["sampling"], known_by)
    return subject, items, about, out


def given_images(
    options: argparse.Namespace, config: Mapping[str, Any]
) -> tuple[Subject, list[Any], dict[str, Any], Path]:
    """Subject, the images of --images, facts about them, output folder."""
    from ldm.evaluation.folder import read_folder
    from ldm.evaluation.protocol import fill_in

    subject = find_subject(options, None)
    bare = fill_in(config["class_prompt"], subject.class_word)
    items = read_folder(options.images, options.identifier, options.class_images, bare)
    out = options.outdir or Path("outputs", "evaluation")
    out.mkdir(parents=True, exist_ok=True)
    about = {"images": str(options.images), "identifier": options.identifier}
    return subject, items, about, out


def check_worlds(networks: Any, model: Any) -> None:
    """The embedded networks have seen nothing but the embedded world; on photographs they would measure nothing."""
    embedded = [
        net for net in (networks.dino, networks.clip) if PROJECT / "assets" in net.folder.resolve().parents
    ]
    if embedded and model.native_size > 2 * EMBEDDED_SIDE:
        raise UserError(
            f"networks: {embedded[0].facts['network']} knows the embedded world alone, and this model draws"
            f" {model.native_size} px; add --config configs/stable-diffusion/evaluation.yaml"
        )


def find_subject(options: argparse.Namespace, learned_class: str | None) -> Subject:
    """The subject's class and photographs, from the command line or from the run that learned it."""
    from ldm.config import read_plain
    from ldm.data.images import image_files
    from ldm.data.subject import split_held_out
    from ldm.training.run_folder import CONFIG as RUN_CONFIG

    folder = run_folder(options.ckpt) if options.ckpt else None
    config = read_plain(folder / RUN_CONFIG) if folder else None
    data = config["data"]["params"] if config else {}
    class_word = options.class_word or learned_class or data.get("class_word")
    if not class_word:
        raise UserError("no class word known: name the subject's class noun with --class_word, such as dog")
    if options.real:
        files = image_files(options.real)
        if not 0 <= options.hold_out < len(files):
            raise UserError(
                f"--hold_out {options.hold_out}: {options.real} has {len(files)} images, and some must be left"
            )
        rest, held_out = split_held_out(files, options.hold_out)
        if held_out and rest:
            note = (
                f"fidelity is against the last {len(held_out)} of the {len(files)} images of {options.real}"
            )
            return Subject(class_word, {"held_out": held_out, "others": rest}, note)
        note = f"fidelity is against the {len(files)} images of {options.real}"
        return Subject(class_word, {"given": files}, note)
    if not data.get("data_root"):
        raise UserError("no photographs of the subject known: name their folder with --real")
    root = Path(data["data_root"])
    files = image_files(root if root.is_dir() else PROJECT / root)
    kept, held_out = split_held_out(files, data.get("hold_out") or 0)
    if held_out:
        note = (
            f"fidelity is against {len(held_out)} images that training never saw (hold_out: {len(held_out)})"
        )
        return Subject(class_word, {"held_out": held_out, "training": kept}, note)
    note = (
        f"fidelity is against the {len(kept)} images the subject was trained on, as in the paper, so what was merely"
        " memorized counts too; train with data.params.hold_out=N to keep images apart"
    )
    return Subject(class_word, {"training": kept}, note)


def run_folder(path: Path) -> Path | None:
    """The run that `path` (itself, one of its checkpoints, or its exported model) belongs to, if any."""
    from ldm.training.run_folder import CONFIG as RUN_CONFIG

    return next((folder for folder in [path, *path.parents[:2]] if (folder / RUN_CONFIG).is_file()), None)


def draw(loaded: Any, items: Sequence[Any], sampling: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Draw those of `items` that are not there yet; each PNG carries what it was drawn with."""
    import torch
    from tqdm import tqdm

    from ldm.data.images import save_image, to_image
    from ldm.data.png import png_text
    from ldm.diffusion.sampling import Sampling
    from ldm.methods.draw import batches

    def metadata(item: Any) -> dict[str, str]:
        facts = {key: sampling[key] for key in ("sampler", "steps", "guidance_scale")} | dict(about)
        facts |= {
            "kind": item.kind,
            "prompt": loaded.with_identifier(item.prompt),
            "text": item.text,
            "seed": item.seed,
        }
        return {key: str(value) for key, value in facts.items()}

    missing = [item for item in items if not item.path.is_file() or png_text(item.path) != metadata(item)]
    model = loaded.model
    settings = Sampling(sampling["sampler"], sampling["steps"], sampling["guidance_scale"])
    done = len(items) - len(missing)
    with tqdm(total=len(items), initial=done, desc="sampling", unit="image", file=sys.stderr) as bar:
        for batch in batches(missing, sampling["batch_size"]):
            prompts = [loaded.with_identifier(item.prompt) for item in batch]
            pictures = model.images(prompts, [item.seed for item in batch], settings)
            for item, pixels in zip(batch, pictures, strict=True):
                save_image(to_image(pixels), item.path, pnginfo=png_info(metadata(item)))
            bar.update(len(batch))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def png_info(facts: Mapping[str, str]) -> Any:
    """`facts` as texts of a PNG."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in facts.items():
        info.add_itxt(key, value)
    return info


def write(
    out: Path,
    result: Mapping[str, Any],
    rows: Sequence[Any],
    real: Sequence[Path],
    published: Sequence[Mapping],
) -> None:
    """metrics.json, images.csv (empty cells: not measured of this kind of image), report.html."""
    from ldm.evaluation.metrics import METRICS
    from ldm.evaluation.report import report
    from ldm.evaluation.scores import FACTS
    from ldm.files import replacing

    with replacing(out / "images.csv") as path, open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*FACTS, *METRICS])
        writer.writeheader()
        writer.writerows(row.cells() for row in rows)
    with replacing(out / "report.html") as path:
        path.write_text(report(result, rows, out, real, published))
    with replacing(out / "metrics.json") as path:  # last: who finds it finds the others too
        path.write_text(json.dumps(result, indent=1) + "\n")


def table(result: Mapping[str, Any], published: Sequence[Mapping[str, Any]]) -> str:
    """The metrics beside the paper's, as text."""
    from ldm.evaluation.metrics import PAPER_METRICS

    rows = [("this evaluation", {key: result["metrics"][key]["value"] for key in PAPER_METRICS})]
    rows += [("real images", {key: result["real"][key]["value"] for key in result["real"]})]
    rows += [(f"paper, table {row['table']}: {row['name']}", row) for row in published]
    lines = [f"{'':52}" + "".join(f"{metric.title:>8}" for metric in PAPER_METRICS.values())]
    for name, values in rows:
        cells = ["" if values.get(key) is None else f"{values[key]:.3f}" for key in PAPER_METRICS]
        lines.append(f"{name:52}" + "".join(f"{cell:>8}" for cell in cells))
    return "\n".join(lines + [f"DIV: {result['networks']['div']}; the paper's is LPIPS"])


if __name__ == "__main__":
    sys.exit(main())
