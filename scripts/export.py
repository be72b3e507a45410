"""Write a trained model for other tools: `python scripts/export.py --ckpt logs/<run> --out dog.safetensors`.

`--out` decides the form: a folder in diffusers' layout, or one `.safetensors` or `.ckpt` file in CompVis'
layout, as AUTOMATIC1111's web UI and ComfyUI read it, with the base's VAE inside. Each comes with a
model card: README.md in a folder, `<name>.md` beside a file.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ldm.command_line import add_trust
from ldm.errors import UserError, exit_code_of

SINGLE_FILES = (".safetensors", ".ckpt")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    return exit_code_of(export, parse(argv))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="run folder, .ckpt of a run, or any base model")
    parser.add_argument(
        "--out", required=True, type=Path, help="new folder, or file in .safetensors or .ckpt"
    )
    parser.add_argument("--dtype", choices=("fp16", "fp32"), default="fp16", help="precision of the weights")
    add_trust(parser)
    return parser.parse_args(argv)


def export(options: argparse.Namespace) -> None:
    """Load, check the target, write the model and its card."""
    import diffusers
    import transformers

    from ldm.devices import DTYPES
    from ldm.formats.single_file import save_single_file
    from ldm.methods.load import load_for_sampling
    from ldm.methods.model_card import card_of

    for library in (diffusers, transformers):
        library.logging.set_verbosity_error()
    out = options.out
    single = out.suffix in SINGLE_FILES
    for path in (out, out.with_suffix(".md")) if single else (out,):
        if path.exists():
            raise UserError(f"--out: {path} exists already; choose another name, or move it away")
    loaded = load_for_sampling(options.ckpt, trust=options.trust)
    if single:
        components = loaded.model.components()
        refuse_other_sizes(components, out)
        save_single_file(components, out, DTYPES[options.dtype], facts(loaded))
        out.with_suffix(".md").write_text(card_of(loaded), encoding="utf-8")
    else:
        subject = {"identifier": loaded.identifier, "class_word": loaded.class_word, "step": loaded.step}
        known = {key: value for key, value in subject.items() if value is not None}
        loaded.model.save(out, DTYPES[options.dtype], known, card_of(loaded))
    print(out)


def refuse_other_sizes(components, out: Path) -> None:
    """Other tools assume Stable Diffusion's sizes and vocabulary for a single file, which states neither."""
    from ldm.formats.single_file import published_family

    if published_family(components) is None:
        raise UserError(
            f"--out {out}: this model is not of Stable Diffusion 1.x's or 2.x's size, and a single file cannot say "
            "so: name a folder"
        )


def facts(loaded) -> dict[str, str]:
    """Metadata of the subject for a safetensors file, in the terms of ModelSpec 1.0.0."""
    if not loaded.identifier:
        return {}
    subject = f"{loaded.identifier} {loaded.class_word or ''}".strip()
    return {"modelspec.title": subject, "modelspec.trigger_phrase": subject}


if __name__ == "__main__":
    sys.exit(main())
