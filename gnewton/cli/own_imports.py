"""``import=FILE`` on the command line: parts of the user's own, loaded before any choice is looked up."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.metadata import entry_points

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
    from gnewton.experiment.own_parts import OPTION, absolute_imports, use_entry_points, use_imports
    from gnewton.options import quoted

    for problem in use_entry_points():
        print(f"gnewton: {problem}", file=sys.stderr)
    words = [word for word in arguments if word.startswith(WORDS)]
    if not words:
        return list(arguments)
    entries = list(
        dict.fromkeys(entry for word in words for entry in absolute_imports(word.partition("=")[2]))
    )
    use_imports(entries)
    override = f"{OPTION}=[{','.join(map(quoted, entries))}]"
    first = list(arguments).index(words[0])
    rest = [word for word in arguments[first:] if word not in words]
    return [*arguments[:first], override, *rest]


def _installed() -> bool:
    """Whether an installed package has parts to offer."""
    return any(group.startswith("gnewton.") for group in entry_points().groups)
