"""Command lines, read as all of the project's are: a mistake is one line on stderr and exit code 2."""

import argparse
from typing import NoReturn

from ldm.errors import EXIT_USER_ERROR, printable


class Parser(argparse.ArgumentParser):
    """argparse's parser, which says what is wrong without repeating its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USER_ERROR, f"error: {printable(message)}; see {self.prog} --help\n")
