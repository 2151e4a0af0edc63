"""What it costs a summary to compare its trace with the model (docs/performance.md).

    python scripts/bench/comparison.py [--only mlp,lenet:500] [--threads 1] [--repeats 30] [--clock wall|cpu]

Sides of a table row take turns in one process: a gradient, the summary, the summary without the comparison,
and the model's forward pass, which comparing two losses would take. The least time of each is kept.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gnewton.partition import Partition
from gnewton.summary import Summarizer
from gnewton.summary.tangent import checks
from gnewton.summary.tangent.trace_cache import TraceCache

sys.path.insert(0, str(Path(__file__).parent))
from summary import CASES, CLOCKS, Case, clock


def measure(case: Case, repeats: int, now: Callable[[], float], engine: str) -> dict[str, float]:
    """The least time of each side, in seconds."""
    torch.manual_seed(0)
    model = case.build()
    inputs, targets = torch.randn(case.batch, *case.shape), torch.randint(0, 10, (case.batch,))
    parameters = dict(model.named_parameters())
    partition = Partition.per_tensor(model)

    def gradient() -> dict[str, Tensor]:
        loss = F.cross_entropy(model(inputs), targets)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    direction = gradient()
    summarizer = Summarizer(model, F.cross_entropy, partition, engine=engine)  # type: ignore[arg-type]
    confirm = TraceCache.confirm

    def summary() -> None:
        summarizer.summarize(inputs, targets, direction)

    def without() -> None:
        TraceCache.confirm = lambda *_, **__: None  # type: ignore[method-assign]
        try:
            summary()
        finally:
            TraceCache.confirm = confirm  # type: ignore[method-assign]

    def forward() -> None:
        with torch.no_grad():
            checks.eager_loss(summarizer.problem, inputs, targets)

    sides = {"gradient": gradient, "summary": summary, "without": without, "forward": forward}
    least = dict.fromkeys(sides, float("inf"))
    summary()
    for _ in range(repeats):
        for name, side in sides.items():
            least[name] = min(least[name], clock(side, torch.device("cpu"), now))
    return least


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="mlp,lenet", help="networks, comma-separated, NAME or NAME:BATCH")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--engine", choices=("tangent", "compiled"), default="tangent")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = set(options.only.split(","))
    print("network    batch  gradient ms  summary  without  comparison in gradients  forward in gradients")
    for case in CASES:
        if wanted & {case.name, f"{case.name}:{case.batch}"}:
            least = measure(case, options.repeats, CLOCKS[options.clock], options.engine)
            unit = least["gradient"]
            print(
                f"{case.name:<9} {case.batch:>6} {unit * 1e3:>12.2f} {least['summary'] / unit:>8.2f}"
                f" {least['without'] / unit:>8.2f} {(least['summary'] - least['without']) / unit:>24.2f}"
                f" {least['forward'] / unit:>21.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
