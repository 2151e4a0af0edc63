"""The argument parser of every command but ``train``, and the types of arguments."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from gnewton.errors import InputError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`InputError`, one message without the usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line by an :class:`InputError`."""
        raise InputError(f"{self.prog.removeprefix('gnewton ')}: {message}; see {self.prog} --help")


def path(text: str) -> Path:
    """Argument type: a path, in which ``~`` is the home folder (no shell expands it after ``--output=``)."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # there is no such user
        return Path(text)


def at_least(low: int) -> Callable[[str], int]:
    """Argument type: a whole number >= ``low``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text}: must be a whole number >= {low}")
        return value

    return parse


def former(name: str) -> Callable[[str], NoReturn]:
    """Argument type of an option that is called ``name`` now: no value is allowed."""

    def parse(text: str) -> NoReturn:
        raise argparse.ArgumentTypeError(f"it is called {name} now; write {name}={text}")

    return parse


def finite(low: float, *, above: bool = False) -> Callable[[str], float]:
    """Argument type: a finite number >= ``low``, or > ``low``."""

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
