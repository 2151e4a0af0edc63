"""``gnewton data``: obtain data sets."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from gnewton.cli.parser import Parser


def run(arguments: list[str]) -> int:
    """``gnewton data fetch NAME`` or ``gnewton data list``; returns 0 or raises."""
    options = _parser().parse_args(arguments)
    if options.action == "list":
        print(_list())
        return 0
    from gnewton.data.fetch import fetch

    for name in options.names:
        print(fetch(name, Path(options.root)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="gnewton data", description="Obtain data sets.")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list the data sets and how they are obtained")
    fetcher = actions.add_parser("fetch", help="obtain data sets now, verified, into the data folder")
    fetcher.add_argument("names", nargs="+", metavar="NAME")
    default = os.environ.get("GNEWTON_DATA", "data")
    fetcher.add_argument("--root", default=default, help="data folder (default: $GNEWTON_DATA, else ./data)")
    return parser


def _list() -> str:
    from gnewton.cli.choices import config_groups
    from gnewton.data.fetch import available

    fetchable = set(available())
    lines = []
    for choice in config_groups()["data"]:
        how = "fetched" if choice.name in fetchable else "-"
        lines.append(f"{choice.name:<14} {how:<8} {choice.description}")
    return "\n".join(lines)
