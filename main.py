"""Train: `python main.py --base configs/dreambooth.yaml`. Continue an interrupted run: `--resume logs/<run>`."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from ldm.command_line import Parser, add_trust, collect_overrides, parse_bool
from ldm.errors import (
    EXIT_RESUME_ME,
    EXIT_USER_ERROR,
    ReportedError,
    UserError,
    exit_code_of,
    is_out_of_memory,
    say,
)
from ldm.values import Seed, option

HINTS = {
    **{
        f"--{name}": f"lightning.trainer.{name}=VALUE"
        for name in (
            "accelerator",
            "accumulate_grad_batches",
            "devices",
            "gradient_clip_val",
            "max_steps",
            "num_nodes",
            "strategy",
        )
    },
    "--precision": "lightning.trainer.precision=16-mixed, bf16-mixed or 32-true",
    "--max_epochs": "lightning.trainer.max_steps=VALUE; runs are measured in optimizer steps",
    "--learning_rate": "model.params.learning_rate=VALUE",
    "--init_word": "--class_word, the subject's class noun",
    "--placeholder_string": "model.params.identifier=WORD, which replaces [V] in the prompts",
    "--embedding_manager_ckpt": "--resume RUN, or --actual_resume BASE",
    "--datadir_in_name": "--name; the run's name always contains the data folder's",
    "-p": "--logdir or --name; to continue a run, --resume",
    "--project": "--logdir or --name; to continue a run, --resume",
}
"""Options of other tools, and what to use here instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (None: the process's own); returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv)
    interrupted = "interrupted; --resume continues from the last checkpoint, if there is one"
    try:
        with ended_resumable() if options.resume else contextlib.nullcontext():
            return exit_code_of(start, options, argv, interrupted=interrupted)
    except SystemExit as stop:  # a signal while a resume starts, or a second Ctrl-C
        say("stopped; --resume continues from the last checkpoint")
        return stop.code if isinstance(stop.code, int) else 1
    except Exception as error:
        if is_out_of_memory(error):
            say("error: out of memory: add configs/low-memory.yaml after the other --base files")
            return EXIT_USER_ERROR
        if options.debug:
            import pdb

            pdb.post_mortem(error.__traceback__)
        raise


def start(options: argparse.Namespace, argv: list[str]) -> int:
    """Run; heavy imports come after the command line has been parsed and checked as far as possible."""
    from ldm.early import refuse_early

    is_first = all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"))
    try:
        refuse_early(options)
    except UserError as error:
        if is_first:
            raise
        raise ReportedError(str(error)) from error
    if is_first and "torch" not in sys.modules:
        print("reading the config; loading PyTorch, Lightning and diffusers takes some seconds", flush=True)
    from ldm.training.run import run

    return run(options, argv)


@contextlib.contextmanager
def ended_resumable() -> Iterator[None]:
    """Make SIGTERM exit with "resume me" from the start of a resume: Signals is installed after seconds of imports.

    A new run has nothing to resume yet, so there SIGTERM has its usual effect.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_RESUME_ME))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line. Arguments that are not options are config overrides, `key.sub=value`."""
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "-b", "--base", nargs="*", default=[], metavar="YAML", help="configs, merged left to right"
    )
    parser.add_argument(
        "-t",
        "--train",
        type=parse_bool,
        nargs="?",
        const=True,
        default=True,
        help="false: check everything and stop",
    )
    parser.add_argument(
        "-r", "--resume", metavar="RUN", help="run folder, or a checkpoint in it, to continue"
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="resume despite changes that alter the loss record"
    )
    parser.add_argument("-n", "--name", help="name of the run (default: the configs' names)")
    parser.add_argument("-f", "--postfix", default="", help="added to the run's name")
    parser.add_argument("-l", "--logdir", help="folder for run folders (default: logs)")
    parser.add_argument("-s", "--seed", type=option(Seed), help="seed of every draw (default: the config's)")
    parser.add_argument("-d", "--debug", action="store_true", help="start the debugger on an error")
    parser.add_argument(
        "--no-test", action="store_true", help="skip validation and samples after the last step"
    )
    parser.add_argument(
        "--scale_lr", action="store_true", help="multiply the learning rate by devices x batch x accumulation"
    )
    parser.add_argument(
        "--actual_resume", metavar="BASE", help="base model: diffusers folder, hub id or single file"
    )
    parser.add_argument("--data_root", help="folder with the subject's images")
    parser.add_argument("--reg_data_root", help="folder with class images, instead of sampling them")
    parser.add_argument("--class_word", help="the subject's class, such as dog")
    parser.add_argument("--gpus", help="'0,1,' for these GPUs, '2' for this number of GPUs")
    add_trust(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config keys to change")
    options = parser.parse_with_overrides(argv, HINTS)
    collect_overrides(options, "base")
    for word in options.overrides:
        if word.lower() in ("true", "false"):
            parser.error(f"'{word}': switches such as --scale_lr take no value; omit them for false")
        if "=" not in word:
            parser.error(f"'{word}' is neither an option nor an override of a config key, key.sub=value")
    return options


if __name__ == "__main__":
    sys.exit(main())
