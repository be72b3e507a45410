"""The user's mistakes, and the exit codes a shell sees."""

EXIT_USER_ERROR = 2
"""A mistake of the user's: one line on stderr says what, where and how to mend it."""

EXIT_RESUME_ME = 75
"""Stopped early by a signal with everything saved: `--resume` goes on (EX_TEMPFAIL of sysexits.h)."""


class UserError(Exception):
    """What a user can mend: `main` and the scripts print its message as one line and exit with code 2."""
