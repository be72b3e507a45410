"""Command-line parsing for all of the project's programs: a mistake is one line on stderr and exit code 2."""

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn, get_args

from ldm.errors import EXIT_USER_ERROR, printable
from ldm.files import PROJECT
from ldm.values import Count, Precision, PredictionType, option

PRECISIONS = ("full", "autocast", *get_args(Precision))
"""Choices of the scripts' option `--precision`."""


class Help(argparse.RawDescriptionHelpFormatter):
    """Adds an option's default to its help if the help does not mention it."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        mentioned = "default" in text or action.nargs == 0
        return text if mentioned or action.default in (None, "", []) else f"{text} (default: %(default)s)"


def add_trust(parser: argparse.ArgumentParser) -> None:
    """Add the option `--trust`, for programs that build the classes a config names."""
    parser.add_argument(
        "--trust",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="let configs build classes of this package, and so run its code; may be repeated",
    )


class Parser(argparse.ArgumentParser):
    """argparse's parser, with error messages of one line, without the usage."""

    def refuse(self, argv: Sequence[str], hints: Mapping[str, str]) -> None:
        """Exit with an error if `argv` has an option of `hints`: other tools' options -> ours that do the same."""
        for word, after in zip(argv, [*argv, "-"][1:], strict=True):
            option, has_value, value = word.partition("=")
            if hint := hints.get(option):
                value = value if has_value else "VALUE" if after.startswith("-") else after
                self.error(f"unknown option {option}: use {hint.replace('VALUE', value)}")

    def parse_with_overrides(
        self, argv: Sequence[str], hints: Mapping[str, str] | None = None
    ) -> argparse.Namespace:
        """`parse_args` for a parser whose positional argument is `overrides`, which may appear anywhere.

        hints: see `refuse`; given by a program that trains, where other trainers' options are explained too.
        """
        self.refuse(argv, hints or {})
        # argparse accepts positional arguments only in one group; people put them anywhere.
        options, rest = self.parse_known_args(argv)
        unknown = [word for word in rest if word.startswith("-")]
        if unknown:
            if hints is not None and (advice := of_other_trainers(unknown[0].partition("=")[0])):
                self.error(f"unknown option {unknown[0]}; {advice}")
            close = difflib.get_close_matches(unknown[0], list(self._option_string_actions), n=1)
            self.error(f"unknown option {unknown[0]}" + (f"; did you mean {close[0]}?" if close else ""))
        options.overrides = [*options.overrides, *rest]
        return options

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"error: {printable(message)}; see {self.prog} --help\n")


def of_other_trainers(option: str) -> str:
    """What docs/migrating.md has for another trainer's option; empty for one that is not in its tables."""
    page = PROJECT / "docs" / "migrating.md"
    rows = (
        re.findall(r"^\| (.*?) \| (.*) \|$", page.read_text(encoding="utf-8"), re.M) if page.is_file() else []
    )
    for theirs, ours in rows:
        if re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", theirs):
            return f"docs/migrating.md has for {theirs}: {ours}".replace("`", "")
    return ""


def add_base_options(parser: argparse.ArgumentParser) -> None:
    """Add options for reading a base model, named as in `model.params` of a run's config."""
    group = parser.add_argument_group("reading a base model (a run's own config has these for its base)")
    ema = group.add_mutually_exclusive_group()
    ema.add_argument(
        "--use_ema", action="store_true", default=None, help="the EMA weights of a single file (default)"
    )
    ema.add_argument(
        "--no_ema", action="store_false", dest="use_ema", default=None, help="its plain weights instead"
    )
    group.add_argument(
        "--prediction_type",
        choices=get_args(PredictionType),
        help="in place of what the base says; single files of SD 2.x do not say it",
    )
    group.add_argument(
        "--zero_terminal_snr",
        action="store_true",
        default=None,
        help="rescale its noise schedule to end in pure noise, as model.params.zero_terminal_snr",
    )
    group.add_argument(
        "--clip_skip",
        type=option(Count),
        metavar="N",
        help="layer of the text encoder that conditions, from the end, as model.params.clip_skip",
    )
    group.add_argument("--vae", help="a VAE in place of the base's own: folder, hub id or single file")
    group.add_argument("--variant", help="infix of weight files' names in a diffusers folder, such as fp16")
    group.add_argument("--revision", help="branch, tag or commit of a hub id")


def add_part_options(parser: argparse.ArgumentParser) -> None:
    """Add options for files of trained parts beside the model of `--ckpt`, as `ldm.methods.parts.Parts` takes them."""
    parser.add_argument(
        "--lora",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[:SCALE]",
        help="LoRAs to add to the weights: files of diffusers or kohya, or folders of diffusers (default scale: 1)",
    )
    parser.add_argument(
        "--embeds",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE[:TOKEN]",
        help="new tokens to add: textual inversion files of a run, of diffusers or of AUTOMATIC1111's web UI (default"
        " token: the file's own)",
    )
    parser.add_argument(
        "--delta",
        nargs=1,
        default=[],
        metavar="FILE",
        help="Custom Diffusion weights in place of the model's: a file, or a folder of a run, as diffusers writes them",
    )


def base_options(options: argparse.Namespace) -> dict[str, object]:
    """The options of `add_base_options` that were given, as keywords of `LatentDiffusion.from_base`."""
    names = ("use_ema", "prediction_type", "zero_terminal_snr", "clip_skip", "vae", "variant", "revision")
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def add_compile(parser: argparse.ArgumentParser) -> None:
    """An option to compile the UNet."""
    parser.add_argument(
        "--compile",
        action="store_true",
        help="compile the UNet's transformer blocks first: a minute, worth it for many images on a GPU; not measured",
    )


def interval(word: str) -> tuple[int, int]:
    """A `type=` for argparse that reads two increasing timesteps, such as 200,800."""
    parts = word.strip(" ()[]").split(",")
    if len(parts) == 2 and all(part.strip().isdecimal() for part in parts):
        first, end = map(int, parts)
        if first < end:
            return first, end
    raise argparse.ArgumentTypeError(f"'{word}': it must be two increasing timesteps, as in 200,800")


def parse_bool(word: str) -> bool:
    """A `type=` for argparse that reads the usual words for true and false."""
    if word.lower() in ("true", "yes", "1", "t", "y"):
        return True
    if word.lower() in ("false", "no", "0", "f", "n"):
        return False
    raise argparse.ArgumentTypeError(f"'{word}' is neither true nor false")


def collect_overrides(options: argparse.Namespace, *names: str) -> None:
    """Move `key.sub=value` to `overrides` from list options, which in argparse take all words that follow."""
    for name in names:
        words = getattr(options, name) or []
        taken = [str(word) for word in words if "=" in str(word) and not Path(word).exists()]
        setattr(options, name, [word for word in words if str(word) not in taken])
        options.overrides = [*taken, *options.overrides]
