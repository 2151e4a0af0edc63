"""``gnewton data``: obtain data sets, and list them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gnewton.cli.commands import Parser, path


def run(arguments: list[str]) -> int:
    """``gnewton data fetch NAME`` or ``gnewton data list``; returns 0 or raises."""
    options = _parser().parse_args(arguments)
    if options.action == "list":
        print(_list(options.root))
        return 0
    from gnewton.data.fetch import fetch

    for name in options.names:
        print(fetch(name, options.root))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="gnewton data", description="Obtain data sets.")
    actions = parser.add_subparsers(dest="action", required=True)
    lister = actions.add_parser("list", help="list the data sets: what is on the disk, its size and licence")
    fetcher = actions.add_parser("fetch", help="obtain data sets now, verified, into the data folder")
    fetcher.add_argument("names", nargs="+", metavar="NAME")
    default = os.environ.get("GNEWTON_DATA", "data")
    for action in (lister, fetcher):
        action.add_argument(
            "--root",
            type=path,
            default=path(default),
            help="data folder (default: $GNEWTON_DATA, else ./data)",
        )
    return parser


def _list(root: Path) -> str:
    from gnewton.cli.choices import config_groups

    rows = [
        (choice.name, *_state(choice.name, root), choice.description) for choice in config_groups()["data"]
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = ["  ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]
    return "\n".join(
        [
            *lines,
            f"\nin {root.absolute()}; gnewton data fetch NAME obtains a set now, or the first run does",
        ]
    )


def _state(name: str, root: Path) -> tuple[str, str, str]:
    """Whether a set is on the disk, its size, and its licence."""
    from gnewton.data.public_sets import CATALOGUE, cached_file

    if name in CATALOGUE:
        entry = CATALOGUE[name]
        copy = cached_file(name, root)
        if copy.is_file():
            return "on disk", _megabytes(copy.stat().st_size), entry.licence
        return "not on disk", _megabytes(entry.size), entry.licence
    if name == "imagenet":
        there = (root / name / "train").is_dir() and (root / name / "val").is_dir()
        return "on disk" if there else "not on disk", "-", "of its images"
    return _NOT_FETCHED.get(name, ("your own", "-", "-"))


_NOT_FETCHED = {
    "digits": ("on disk", "in scikit-learn", "CC BY 4.0"),
    "tabular": ("on disk", "in scikit-learn", "CC BY 4.0; diabetes: none stated"),
    "tiny_text": ("on disk", "in this package", "public domain"),
    "teacher": ("drawn", "-", "-"),
    "poisson": ("drawn", "-", "-"),
    "none": ("nothing", "-", "-"),
}
"""State, size and licence of the sets that come with a package or are made by a run."""


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f} MB"
