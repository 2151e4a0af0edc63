"""Run a study, or continue it, and write its report.

python -m scripts.study [quick|full] [--only digits,mlp_mnist] [--methods "kfac; sgd"] [--jobs 2]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gnewton.errors import GnewtonError
from scripts.study.plan import FINAL, SEARCH, Plan
from scripts.study.report import write_report
from scripts.study.results import choose, table
from scripts.study.stages import run_stage


def main() -> int:
    """Search, final runs, report; what has been run already is not run again."""
    parser = argparse.ArgumentParser(prog="python -m scripts.study", description=__doc__)
    parser.add_argument("plan", nargs="?", choices=("quick", "full"), default="quick")
    parser.add_argument("--only", default="", help="tasks, comma-separated")
    parser.add_argument(
        "--methods", default="", help="methods, semicolon-separated; the reference is always run"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; for times that compare: 1")
    parser.add_argument("--root", type=Path, default=Path("outputs/study"))
    options = parser.parse_args()
    root = (options.root / options.plan).resolve()
    launcher = [f"launcher.jobs={options.jobs}"]
    try:
        plan = Plan.read(options.plan).only(_names(options.only, ","), _names(options.methods, ";"))
        searched = run_stage(root / SEARCH, plan.search(), launcher)
        chosen = choose(searched)
        finals = run_stage(root / FINAL, plan.final(chosen), launcher)
    except GnewtonError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    write_report(root / "report", plan, searched, finals, table(plan, chosen, finals))
    print(f"report: {root / 'report' / 'README.md'}")
    return 0


def _names(text: str, separator: str) -> list[str]:
    return [name.strip() for name in text.split(separator) if name.strip()]


if __name__ == "__main__":
    sys.exit(main())
