"""The commands by name, the parser of their arguments, and ``import=FILE``: parts of the user's own.

A new command is a module with ``run(arguments) -> int`` and a line in this table.
"""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import NoReturn

from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing, user_path


@dataclass(frozen=True)
class Command:
    """A command: its name, a line that says what it does, and its module."""

    name: str
    summary: str
    module: str

    def load(self) -> Callable[[list[str]], int]:
        """The function that runs it: it takes the arguments after the name and returns the exit code."""
        run: Callable[[list[str]], int] = importlib.import_module(self.module).run
        return run


COMMANDS = {
    command.name: command
    for command in (
        Command("train", "train a model and log the run as CSV", "gnewton.cli.train"),
        Command("sweep", "train many combinations, each in a process of its own", "gnewton.cli.sweep"),
        Command("tune", "find the settings of several optimizers on equal terms", "gnewton.cli.tune"),
        Command("rerun", "make a run once more, and see whether it gives the same", "gnewton.cli.rerun"),
        Command("compare", "tables, plots and a page of finished runs", "gnewton.cli.compare"),
        Command("inspect", "the loss around a point: Hessian, rates, plots", "gnewton.cli.inspect"),
        Command("rates", "suggest a learning rate per group for SGD or Adam", "gnewton.cli.rates"),
        Command("doctor", "examine the installation, with a self-test", "gnewton.cli.doctor"),
        Command("data", "obtain a data set, or list what there is", "gnewton.cli.data"),
    )
}


OF_RUNS = ("train", "sweep", "tune", "rerun", "inspect", "rates")
"""The commands that take the options of runs, ``import=`` among them."""


def find_command(name: str) -> Command:
    """The command called ``name``.

    Raises:
        InputError: listing the commands if there is none.
    """
    if name not in COMMANDS:
        known = listing(list(COMMANDS))
        raise InputError(f"{name}: no such command (one of {known}){did_you_mean(name, COMMANDS)}")
    return COMMANDS[name]


class Parser(argparse.ArgumentParser):
    """A parser whose errors are :class:`InputError`, one message without the usage."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line by an :class:`InputError`."""
        raise InputError(f"{self.prog.removeprefix('gnewton ')}: {message}; see {self.prog} --help")


def path(text: str) -> Path:
    """Argument type: a path, in which ``~`` is the home folder (no shell expands it after ``--output=``)."""
    return user_path(text)


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
    """Argument type of an option that has been renamed to ``name``: no value is allowed."""

    def parse(text: str) -> NoReturn:
        raise argparse.ArgumentTypeError(f"has been renamed; write {name}={text}")

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


WORDS = ("import=", "imports=")


def with_imports(arguments: Sequence[str]) -> list[str]:
    """Load the own parts that the arguments of a command name, and those of installed packages.

    Returns:
        the arguments, with one ``imports=[…]`` of absolute paths in place of every ``import=…``.

    Raises:
        InputError: see :func:`~gnewton.experiment.own_parts.use_imports`.
    """
    if not any(word.startswith(WORDS) for word in arguments) and not _installed():
        return list(arguments)
    from gnewton.experiment.own_parts import (
        absolute_imports,
        imports_override,
        use_entry_points,
        use_imports,
    )

    for problem in use_entry_points():
        print(f"gnewton: {problem}", file=sys.stderr)
    words = [word for word in arguments if word.startswith(WORDS)]
    if not words:
        return list(arguments)
    entries = list(
        dict.fromkeys(entry for word in words for entry in absolute_imports(word.partition("=")[2]))
    )
    use_imports(entries)
    first = list(arguments).index(words[0])
    rest = [word for word in arguments[first:] if word not in words]
    return [*arguments[:first], imports_override(entries), *rest]


def _installed() -> bool:
    """Whether an installed package has parts to offer."""
    return any(group.startswith("gnewton.") for group in entry_points().groups)
