"""The user's mistakes, the exit codes a shell sees, and how either is told."""

import errno
import sys
import warnings
from collections.abc import Callable
from typing import Any

EXIT_USER_ERROR = 2
"""A mistake of the user's: one line on stderr says what, where and how to mend it."""

EXIT_RESUME_ME = 75
"""Stopped early by a signal with everything saved: `--resume` goes on (EX_TEMPFAIL of sysexits.h)."""

EXIT_INTERRUPTED = 130
"""Ctrl-C ended it at once (128 + SIGINT)."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """What a user can mend: `main` and the scripts print its message as one line and exit with code 2."""


class ToldError(UserError):
    """A UserError that another process of the run tells the user."""


class StoppedError(Exception):
    """A signal ended the work early, with everything saved; the message says how to go on."""


def exit_code_of(act: Callable[..., int | None], *arguments: Any) -> int:
    """Exit code of `act(*arguments)`: what it returns, and 0 for None.

    What a user can mend, a full disk and a stop become one line on stderr and the exit code that stands for it; so
    does each warning, without an exit code.
    """
    before, warnings.showwarning = warnings.showwarning, lambda message, *_: say(f"warning: {message}")
    try:
        return act(*arguments) or 0
    except UserError as error:
        if not isinstance(error, ToldError):
            say(f"error: {error}")
        return EXIT_USER_ERROR
    except StoppedError as stop:
        say(str(stop))
        return EXIT_RESUME_ME
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        say(f"error: {error}: free some space and start it again")
        return EXIT_USER_ERROR
    finally:
        warnings.showwarning = before


def say(line: str) -> None:
    """One line on stderr; where progress bars are drawn, above them and not in their middle."""
    if tqdm := sys.modules.get("tqdm"):
        tqdm.tqdm.write(printable(line), file=sys.stderr)
    else:
        print(printable(line), file=sys.stderr)


def printable(text: str) -> str:
    """`text` as one line that any terminal can be handed.

    Names of files and words of configs may come from a stranger, and a terminal obeys their control characters.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`text` with the ends of its lines, and each line `printable`."""
    return "\n".join(map(printable, text.split("\n")))
