"""``gnewton compare``: tables and plots of runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from gnewton.cli.commands import Parser, path

if TYPE_CHECKING:
    from gnewton.report.comparison import Comparison

FORMATS = ("text", "markdown", "csv")


def run(arguments: list[str]) -> int:
    """``gnewton compare DIR…``: tables, plots and perhaps a page; returns 0 or raises."""
    options = _parser().parse_args(arguments)
    from gnewton.report.comparison import compare, write_tables
    from gnewton.report.measures import MetricTarget

    target = None if options.target is None else MetricTarget.parse(options.target)
    comparison = compare(options.folders, target=target, mixed_hardware=options.mixed_hardware)
    folder = options.output or options.folders[0] / "comparison"
    written = write_tables(comparison, folder)
    if options.plots:
        from gnewton.report.plots.comparison_plots import write_plots

        written += write_plots(comparison, folder)
    if options.html:
        from gnewton.report.page import write_page

        written.append(write_page(comparison, folder / "report.html"))
    print(_as_text(comparison, options.format))
    if options.format == "text":
        print(f"\n{len(written)} files in {folder}: {', '.join(path.name for path in written)}")
    return 0


def _as_text(comparison: Comparison, style: str) -> str:
    from gnewton.report.comparison import markdown_page
    from gnewton.report.measures import flat_table
    from gnewton.report.tables import as_text

    if style == "csv":
        return flat_table(comparison.table).to_csv(index=False).rstrip("\n")
    if style == "markdown":
        return markdown_page(comparison).rstrip("\n")
    notes = "\n".join(f"- {note}" for note in comparison.notes)
    return f"{comparison.hardware}\n\n{as_text(comparison.tables())}\n\n{notes}"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="gnewton compare",
        description="Compare the runs in or below some folders: tables, CSV, Markdown and plots.",
        epilog="Runs that differ in nothing but the seed are one set-up. Files are read; nothing is trained.",
    )
    parser.add_argument(
        "folders", nargs="+", type=path, metavar="DIR", help="run folders, or folders above them"
    )
    parser.add_argument(
        "--target",
        metavar="METRIC=VALUE",
        help="report the way to this target, such as validation_accuracy=0.95 "
        "(default: that in the configuration of each run)",
    )
    parser.add_argument(
        "--mixed-hardware",
        action="store_true",
        help="compare runs of different hardware or number formats nevertheless",
    )
    parser.add_argument("--html", action="store_true", help="write report.html too, one self-contained page")
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="write no PNG and SVG plots")
    parser.add_argument(
        "--format", choices=FORMATS, default="text", help="what is printed (default: %(default)s)"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=path,
        metavar="FOLDER",
        help="where the files go (default: comparison/ in the first DIR)",
    )
    return parser
