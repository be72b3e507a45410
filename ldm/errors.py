"""The user's mistakes, and the exit codes a shell sees."""

import sys
from collections.abc import Callable
from typing import Any

EXIT_USER_ERROR = 2
"""A mistake of the user's: one line on stderr says what, where and how to mend it."""

EXIT_RESUME_ME = 75
"""Stopped early by a signal with everything saved: `--resume` goes on (EX_TEMPFAIL of sysexits.h)."""


class UserError(Exception):
    """What a user can mend: `main` and the scripts print its message as one line and exit with code 2."""


def exit_code_of(act: Callable[..., Any], *arguments: Any) -> int:
    """0 after `act(*arguments)`; a user's mistake in it becomes one line on stderr and EXIT_USER_ERROR."""
    try:
        act(*arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0
