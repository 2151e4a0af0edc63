"""The parser of the commands that are not composed by Hydra."""

from __future__ import annotations

import argparse
from typing import NoReturn

from gnewton.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one message like all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line.

        Raises:
            InputError: always.
        """
        raise InputError(f"{self.prog.removeprefix('gnewton ')}: {message}; see {self.prog} --help")
