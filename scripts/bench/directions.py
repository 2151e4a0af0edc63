"""What a step of GroupedNewton costs along one direction and along a pair (docs/results/directions.md).

    python scripts/bench/directions.py [--directions adam,pair] [--repeats 30] [--threads 1]

All sides take turns in one process, a step with new rates and a plain one each; of each kind the least time
is kept. The mean is that of period 10, in steps of SGD with momentum.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from summary import CASES, Case
from torch import Tensor, nn

from gnewton import GroupedNewton

PERIOD = 10
SIZES = {("mlp", 100), ("lenet", 100)}


def sides(
    model: nn.Module, batch: tuple[Tensor, Tensor], directions: list[str]
) -> dict[str, Callable[[], None]]:
    """A function that makes one training step, for SGD and for GroupedNewton along each direction."""
    inputs, targets = batch

    def sgd() -> Callable[[], None]:
        net = copy.deepcopy(model)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step()

        return step

    def grouped_newton(direction: str) -> Callable[[], None]:
        net = copy.deepcopy(model)
        optimizer = GroupedNewton(net, F.cross_entropy, direction=direction, period=2)

        def step() -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(inputs), targets).backward()
            optimizer.step(batch=batch)

        return step

    return {"sgd": sgd(), **{direction: grouped_newton(direction) for direction in directions}}


def measure(case: Case, directions: list[str], repeats: int) -> dict[str, tuple[float, float]]:
    """The least time of a step with new rates and of a plain one, in ms, by side."""
    torch.manual_seed(0)
    batch = torch.randn(case.batch, *case.shape), torch.randint(0, 10, (case.batch,))
    steps = sides(case.build(), batch, directions)
    times: dict[str, list[list[float]]] = {name: [[], []] for name in steps}
    for step in steps.values():  # the trace, and the first rates
        for _ in range(8):
            step()
    for _ in range(repeats):
        for name, step in steps.items():
            for kind in (0, 1):
                start = time.perf_counter()
                step()
                times[name][kind].append(1e3 * (time.perf_counter() - start))
    return {name: (min(update), min(plain)) for name, (update, plain) in times.items()}


def main() -> None:
    """Print a line for each network and side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--directions", default="adam,pair", help="comma-separated")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("network  direction  new rates, ms  plain, ms  × SGD")
    for case in CASES:
        if (case.name, case.batch) not in SIZES:
            continue
        least = measure(case, options.directions.split(","), options.repeats)
        unit = min(least["sgd"])
        for name, (update, plain) in least.items():
            mean = plain if name == "sgd" else (update + (PERIOD - 1) * plain) / PERIOD
            print(f"{case.name:8} {name:10} {update:13.1f} {plain:10.1f} {mean / unit:6.2f}")


if __name__ == "__main__":
    main()
