"""What a Gauss–Newton or Fisher matrix costs, in gradients (docs/performance.md).

    python scripts/bench/gauss_newton.py [--only bigmlp,vit] [--repeats 4] [--threads 1]

Every figure of a row comes from one process; the sides take turns, and the least processor time of each is
kept. Batch normalisation is in evaluation mode.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

from gnewton.partition import Partition
from gnewton.summary import Summarizer

sys.path.insert(0, str(Path(__file__).parent))
from summary import CASES, Case


def measure(case: Case, repeats: int) -> str:
    """One row: the network, its groups, and both matrices in gradients, with the way that was taken."""
    torch.manual_seed(0)
    model = case.build().eval()
    x, y = torch.randn(case.batch, *case.shape), torch.randint(0, 10, (case.batch,))
    partition = Partition.per_tensor(model)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}

    def gradient() -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    sides: dict[str, Callable[[], object]] = {"gradient": gradient}
    ways = []
    for matrix in ("gauss_newton", "fisher"):
        summarizer = Summarizer(model, F.cross_entropy, partition, curvature=matrix, engine="tangent")
        sides[matrix] = partial(summarizer.summarize, x, y, direction)
        sides[matrix]()
        ways.append(getattr(summarizer.tangent_engine, "last_way", ""))
    least = dict.fromkeys(sides, float("inf"))
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.process_time()
            side()
            least[name] = min(least[name], time.process_time() - start)
    ratios = [
        f"{least[name] / least['gradient']:6.2f} ({way})"
        for name, way in zip(list(sides)[1:], ways, strict=True)
    ]
    return f"{case.name:10}{case.batch:6}{len(partition):6}{1e3 * least['gradient']:9.1f} ms  " + "  ".join(
        ratios
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="mlp,lenet,bigmlp,resnet18,vit")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("network    batch groups gradient     gauss_newton       fisher")
    for case in CASES:
        if case.name in arguments.only.split(","):
            print(measure(case, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
