"""The parser of the commands that are not composed by Hydra."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
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


def path(text: str) -> Path:
    """The type of an argument that is a path: ``~`` stands for the home folder, as after ``--output=``."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return Path(text)


def at_least(low: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number >= ``low``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number >= {low}")
        return value

    return parse


def finite(low: float, *, above: bool = False) -> Callable[[str], float]:
    """The type of an argument that is a finite number >= ``low``, or > ``low``."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and (value > low if above else value >= low)):
            raise argparse.ArgumentTypeError(
                f"{text}: must be a finite number {'>' if above else '>='} {low:g}"
            )
        return value

    return parse
