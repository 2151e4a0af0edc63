"""Time the cubic solver against a bisection that refactorises M(r) at every evaluation.

    OMP_NUM_THREADS=1 python scripts/bench/cubic.py [--out outputs/bench/cubic.csv] [--sizes 1 10 50 1000]
                                                   [--models 20] [--repeats 5]

Both run in this process, alternating, on the same models: symmetric Gaussian Hessian, non-zero thirds. The
bisection brackets the radius, tests M(r) by Cholesky, and halves the bracket until its relative width is
1e-12. Of each model the fastest of the repeats counts, for both alike. Prints a table and writes it as CSV:
medians over the models in milliseconds and their ratio.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import scipy
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from gnewton.cubic import solve_cubic

T = TypeVar("T")

SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
WIDTH = 1e-12
COLUMNS = (
    "groups", "solver_ms", "solver_slowest_ms", "nonnegative_ms", "bisection_ms", "ratio",
    "factorisations", "status", "residual", "curvature_margin", "difference",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/cubic.csv"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument(
        "--models", type=int, default=20, help="number of models up to 200 groups; a quarter above"
    )
    parser.add_argument("--repeats", type=int, default=5, help="runs of each model; the fastest counts")
    options = parser.parse_args()
    machine = platform.processor() or platform.machine()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(f"{machine}, Python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}")
    print(f"OMP_NUM_THREADS {threads}, {os.cpu_count()} cores")
    print(" ".join(f"{name:>17}" for name in COLUMNS))
    rows = []
    for size in options.sizes:
        models = options.models if size <= 200 else max(3, options.models // 4)
        row = measure(size, models, options.repeats)
        rows.append(row)
        print(" ".join(f"{_text(row[name]):>17}" for name in COLUMNS), flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {options.out}", file=sys.stderr)


def model(size: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    rng = np.random.default_rng([size, seed])
    a = rng.standard_normal((size, size))
    return (a + a.T) / 2.0, rng.standard_normal(size), rng.standard_normal(size), 1.0


def measure(size: int, models: int, repeats: int) -> dict[str, float | str]:
    ours, signed, theirs, factorisations, difference = [], [], [], 0, 0.0
    worst_residual, worst_margin, status = 0.0, np.inf, ""
    solve_cubic(*model(size, 0))
    for seed in range(models):
        arguments = model(size, seed)
        runs = []
        for _ in range(repeats):
            solution, mine = timed(lambda: solve_cubic(*arguments))  # noqa: B023
            (rates, count), other = timed(lambda: bisection(*arguments))  # noqa: B023
            runs.append((mine, other))
        ours.append(min(mine for mine, _ in runs))
        theirs.append(min(other for _, other in runs))
        if seed < 3:
            signed.append(timed(lambda: solve_cubic(*arguments, nonnegative=True))[1])  # noqa: B023
        solved = np.asarray(solution.rates)
        factorisations = max(factorisations, count)
        difference = max(difference, float(np.linalg.norm(solved - rates) / np.linalg.norm(solved)))
        worst_residual = max(worst_residual, solution.residual)
        worst_margin, status = min(worst_margin, solution.curvature_margin), solution.status.value
    return {
        "groups": size,
        "solver_ms": 1e3 * float(np.median(ours)),
        "solver_slowest_ms": 1e3 * max(ours),
        "nonnegative_ms": 1e3 * float(np.median(signed)),
        "bisection_ms": 1e3 * float(np.median(theirs)),
        "ratio": float(np.median(theirs) / np.median(ours)),
        "factorisations": factorisations,
        "status": status,
        "residual": worst_residual,
        "curvature_margin": worst_margin,
        "difference": difference,
    }


def timed(run: Callable[[], T]) -> tuple[T, float]:
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start


def bisection(
    hessian: np.ndarray, gradient: np.ndarray, third: np.ndarray, damping: float
) -> tuple[np.ndarray, int]:
    """The plain method: bisection on ‖Dη(r)‖ = r with a Cholesky factorisation of M(r) each time."""
    d = np.cbrt(np.abs(third))
    low, high, count = 0.0, 1.0, 0
    rates = np.zeros_like(gradient)

    def below(r: float) -> bool:
        """Whether r is below the solution; leaves the rates of any r with M(r) positive definite."""
        nonlocal count, rates
        count += 1
        try:
            factor = cho_factor(hessian + np.diag(0.5 * damping * r * d * d), lower=True, check_finite=False)
        except LinAlgError:
            return True
        rates = cho_solve(factor, gradient, check_finite=False)
        return bool(np.linalg.norm(d * rates) > r)

    while below(high):
        low, high = high, 2.0 * high
    while high - low > WIDTH * high:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if below(middle) else (low, middle)
    return rates, count


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


if __name__ == "__main__":
    main()
