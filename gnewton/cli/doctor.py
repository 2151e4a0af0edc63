"""``gnewton doctor``: whether everything that a run needs is installed and computes correctly."""

from __future__ import annotations

import argparse
import os
import textwrap
from functools import partial
from pathlib import Path

from gnewton.cli.commands import Parser, path
from gnewton.diagnostics import (
    Check,
    Finding,
    Level,
    datasets,
    devices,
    examine,
    installation,
    output_folder,
    selftest,
)


def run(arguments: list[str]) -> int:
    """``gnewton doctor``; returns 0, or 1 if something is broken."""
    options = _parser().parse_args(arguments)
    findings: list[Finding] = []
    for title, check in _checks(options):
        print(f"{title}:", flush=True)
        for finding in examine(title, check):
            print(_line(finding), flush=True)
            findings.append(finding)
    broken = [finding.subject for finding in findings if finding.level is Level.BROKEN]
    warnings = [finding.subject for finding in findings if finding.level is Level.WARNING]
    if warnings:
        print(f"\n{len(warnings)} warning{'s' if len(warnings) > 1 else ''}: {', '.join(warnings)}")
    if broken:
        print(f"\nbroken: {', '.join(broken)}")
        return 1
    print("\neverything needed is there and works" if not warnings else "nothing is broken")
    return 0


def _checks(options: argparse.Namespace) -> list[tuple[str, Check]]:
    """The checks by title."""
    return [
        ("installation", installation),
        ("devices", devices),
        ("output folder", partial(output_folder, options.output_root)),
        ("data", partial(datasets, options.data_root)),
        ("self-test", selftest),
    ]


def _line(finding: Finding) -> str:
    head = f"  {finding.level.value:<8} {finding.subject:<20} "
    return textwrap.fill(
        finding.message,
        118,
        initial_indent=head,
        subsequent_indent=" " * 32,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gnewton doctor",
        description="Examine the installation: versions and pins, devices, the output folder, the data sets "
        "at hand, and a self-test of two seconds.",
        epilog="Exit code 0: nothing is broken (there may be warnings); 1: something is.",
    )
    parser.add_argument(
        "--data-root",
        type=path,
        default=Path(os.environ.get("GNEWTON_DATA", "data")),
        metavar="FOLDER",
        help="folder of the data sets (default: $GNEWTON_DATA, else ./data)",
    )
    parser.add_argument(
        "--output-root",
        type=path,
        default=Path("outputs"),
        metavar="FOLDER",
        help="where runs would be written (default: outputs)",
    )
    return parser
