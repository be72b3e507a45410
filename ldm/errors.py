"""User errors, exit codes, and how both are reported."""

import errno
import shlex
import sys
import warnings
from collections.abc import Callable

EXIT_USER_ERROR = 2
"""A user's mistake: one line on stderr says what, where and how to fix it."""

EXIT_RESUME_ME = 75
"""Stopped early by a signal with everything saved: `--resume` continues (EX_TEMPFAIL of sysexits.h)."""

EXIT_INTERRUPTED = 130
"""Ended at once by Ctrl-C (128 + SIGINT)."""

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

NOT_THAT_KIND = (errno.EISDIR, errno.ENOTDIR)
"""A folder in place of a file, or a file in place of a folder."""

FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, *NOT_THAT_KIND)
"""A file or folder that may not be read or written, or is the other of the two."""


class UserError(Exception):
    """A mistake the user can fix: `main` and the scripts print its message as one line and exit with code 2."""


class ReportedError(UserError):
    """A UserError that another process of the run reports to the user."""


class StoppedError(Exception):
    """A signal ended the work early, with everything saved; the message says how to continue."""


def exit_code_of(
    act: Callable[..., int | None],
    *arguments: object,
    interrupted: str = "interrupted; the same command goes on or begins again",
) -> int:
    """Run `act(*arguments)` and return its result as exit code; None counts as 0.

    A user's mistake, a full disk, a forbidden file and a stop become one line on stderr and their exit code. Warnings
    become one line each. interrupted: the line after Ctrl-C.
    """
    before, warnings.showwarning = warnings.showwarning, lambda message, *_: say(f"warning: {message}")
    try:
        return act(*arguments) or 0
    except UserError as error:
        if not isinstance(error, ReportedError):
            say(f"error: {error}")
        return EXIT_USER_ERROR
    except StoppedError as stop:
        say(str(stop))
        return EXIT_RESUME_ME
    except KeyboardInterrupt:
        say(interrupted)
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno in DISK_IS_FULL:
            say(f"error: {error}: free some space and try again")
        elif error.errno in FORBIDDEN and error.filename is not None:
            advice = "" if error.errno in NOT_THAT_KIND else "change its permissions, or "
            say(f"error: {error.filename}: {error.strerror}: {advice}choose another place")
        else:
            raise
        return EXIT_USER_ERROR
    finally:
        warnings.showwarning = before


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch found no memory for a tensor, of a GPU or of the machine (where Linux limits the process)."""
    text = str(error).lower()
    return "out of memory" in text or "can't allocate memory" in text


def say(line: str) -> None:
    """Print one line on stderr, above any progress bars."""
    if tqdm := sys.modules.get("tqdm"):
        tqdm.tqdm.write(printable(line), file=sys.stderr)
    else:
        print(printable(line), file=sys.stderr)


def quoted(path: object) -> str:
    """`path` as a word of a shell's command line, for commands to copy."""
    return shlex.quote(str(path))


def printable(text: str) -> str:
    """`text` as one line that is safe to print.

    File names and config values may come from a stranger and hold control characters, which terminals obey.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """`text` with line breaks kept and every line `printable`."""
    return "\n".join(map(printable, text.split("\n")))
