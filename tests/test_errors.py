"""Messages on the terminal, and exit codes."""

import errno
import warnings
from pathlib import Path

import pytest

from ldm.command_line import Parser
from ldm.errors import StoppedError, UserError, exit_code_of, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("photos/Zoë 犬 🐶.png", "photos/Zoë 犬 🐶.png"),
        ("\x1b]0;owned\x07\x1b[2J.png", r"\x1b]0;owned\x07\x1b[2J.png"),
        ("two\nlines\r", r"two\nlines\r"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("not utf-8: \udcff", r"not utf-8: \udcff"),
    ],
)
def test_text_that_a_terminal_can_be_handed(text, shown):
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("image \x1b[2J.png: no"), 2, r"error: image \x1b[2J.png: no"),
        (StoppedError("stopped; the same command goes on"), 75, "stopped; the same command goes on"),
        (
            OSError(errno.ENOSPC, "No space left on device", "a.png"),
            2,
            "error: [Errno 28] No space left on device: 'a.png': free some space and try again",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "photos"),
            2,
            "error: photos: Permission denied: change its permissions, or choose another place",
        ),
        (
            IsADirectoryError(errno.EISDIR, "Is a directory", "photos"),
            2,
            "error: photos: Is a directory: choose another place",
        ),
    ],
)
def test_what_ends_a_command_early_is_one_line(capsys, raised, code, line):
    def act():
        raise raised

    assert exit_code_of(act) == code
    assert capsys.readouterr().err == line + "\n"


def test_an_interrupt_is_one_line_too(capsys):
    def act():
        raise KeyboardInterrupt

    assert exit_code_of(act) == exit_code_of(act, interrupted="gone") == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on or begins again\ngone\n"


def test_exit_codes_of_what_ends_well():
    assert exit_code_of(lambda: None) == 0
    assert exit_code_of(lambda code: code, 75) == 75


def test_other_errors_are_bugs_and_keep_their_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 / 0)
    with pytest.raises(FileNotFoundError):
        exit_code_of(Path("/nowhere").stat)


def test_a_mistake_on_the_command_line_is_one_line(capsys):
    parser = Parser(prog="x.py")
    parser.add_argument("--count", type=int)
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--count", "\x1b[2J"])
    assert stop.value.code == 2
    line = r"error: argument --count: invalid int value: '\x1b[2J'; see x.py --help"
    assert capsys.readouterr().err.replace(r"\\", "\\") == line + "\n"


def test_warnings_are_one_line_too(capsys):
    assert exit_code_of(lambda: warnings.warn("image \x1b[2J.png is small", stacklevel=1)) == 0
    assert capsys.readouterr().err == r"warning: image \x1b[2J.png is small" + "\n"
