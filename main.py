"""Train: `python main.py --base configs/dreambooth.yaml`; go on after an interruption: `--resume logs/<run>`."""

import argparse
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ldm.command_line import Parser, add_trust
from ldm.errors import EXIT_RESUME_ME, EXIT_USER_ERROR, UserError
from ldm.values import Seed, option


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (the process's own when None); returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = parse(argv)
    try:
        with ended_resumable() if options.resume else contextlib.nullcontext():
            from ldm.training.run import run  # heavy imports come after the command line was read

            return run(options, argv)
    except UserError as error:
        if int(os.environ.get("LOCAL_RANK", "0")) > 0:
            time.sleep(20)  # most likely the first process says the same, and this one ends with it
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except SystemExit as stop:  # a signal while a resume starts, or the second Ctrl-C
        print("stopped; --resume goes on from the last checkpoint", file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        print("interrupted; --resume goes on from the last checkpoint, if there is one", file=sys.stderr)
        return 130
    except Exception as error:
        if "out of memory" in str(error).lower():
            print(
                "error: the GPU is out of memory: add configs/low-memory.yaml after the other --base files",
                file=sys.stderr,
            )
            return EXIT_USER_ERROR
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            print(f"error: {error}: free some space and --resume, what is saved is kept", file=sys.stderr)
            return EXIT_USER_ERROR
        if options.debug:
            import pdb

            pdb.post_mortem(error.__traceback__)
        raise


@contextlib.contextmanager
def ended_resumable() -> Iterator[None]:
    """SIGTERM means "resume me" from the first moment of a resume: imports take seconds before Signals is there.

    A fresh start has nothing to be resumed yet; there SIGTERM ends it as it ends any program.
    """
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_RESUME_ME))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line. Words that are no option are config overrides, `key.sub=value`."""
    parser = Parser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "-b", "--base", nargs="*", default=[], metavar="YAML", help="configs, merged left to right"
    )
    parser.add_argument(
        "-t",
        "--train",
        type=_truth,
        nargs="?",
        const=True,
        default=True,
        help="false: check everything, and stop",
    )
    parser.add_argument(
        "-r", "--resume", metavar="RUN", help="a run folder, or a checkpoint in one, to go on with"
    )
    parser.add_argument(
        "--accept-changes", action="store_true", help="resume although what makes the loss record was changed"
    )
    parser.add_argument("-n", "--name", help="name of the run (default: the first config's)")
    parser.add_argument("-f", "--postfix", default="", help="added to the run's name")
    parser.add_argument("-l", "--logdir", default="logs", help="where run folders are made")
    parser.add_argument("-s", "--seed", type=option(Seed), help="seed of every draw (default: the config's)")
    parser.add_argument("-d", "--debug", action="store_true", help="open the debugger on an error")
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
    parser.add_argument("--reg_data_root", help="folder with class images, in place of sampling them")
    parser.add_argument("--class_word", help="the subject's class, such as dog")
    parser.add_argument("--gpus", help="'0,1,' for these GPUs, '2' for so many")
    add_trust(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="config keys to change")
    # parse_known_args, because argparse wants all free words together, and people put them anywhere.
    options, rest = parser.parse_known_args(argv)
    unknown = [word for word in rest if word.startswith("-")]
    if unknown:
        parser.error(f"unknown option {unknown[0]}")
    free = [word for word in options.base if "=" in word and not Path(word).exists()]
    options.base = [word for word in options.base if word not in free]
    options.overrides = free + options.overrides + rest
    return options


def _truth(word: str) -> bool:
    if word.lower() in ("true", "yes", "1", "t", "y"):
        return True
    if word.lower() in ("false", "no", "0", "f", "n"):
        return False
    raise argparse.ArgumentTypeError(f"'{word}' is neither true nor false")


if __name__ == "__main__":
    sys.exit(main())
