"""Train the zoo: first, highest and last loss of each network (docs/reliability.md).

python -m scripts.zoo [--only deep_relu,lstm] [--options step_size=3 direction=kfac] [--seeds 0,1]
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch
import yaml

from gnewton import GroupedNewton
from scripts.zoo.tasks import TASKS


def run(name: str, seed: int, options: dict[str, Any], adam: float | None, steps: int) -> dict[str, Any]:
    """One training; losses are those of the batches before their steps, the last the mean of ten."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    task = TASKS[name]()
    start = time.perf_counter()
    losses: list[float] = []
    error = ""
    try:
        if adam is not None:
            optimizer: Any = torch.optim.Adam(task.model.parameters(), lr=adam)
        else:
            optimizer = GroupedNewton(task.model, task.loss_fn, **options)
        for _ in range(steps):
            chosen = torch.randperm(len(task.inputs))[: task.batch]
            batch = task.inputs[chosen], task.targets[chosen]
            optimizer.zero_grad()
            loss = task.loss_fn(task.model(batch[0]), batch[1])
            loss.backward()
            losses.append(loss.item())
            optimizer.step() if adam is not None else optimizer.step(batch=batch)
    except Exception as exception:
        error = f"{type(exception).__name__}: {str(exception)[:100]}"
    last = losses[-10:]
    return {
        "task": name, "seed": seed, "first": losses[0], "highest": max(losses), "last": sum(last) / len(last),
        "seconds": time.perf_counter() - start, "error": error,
    }  # fmt: skip


def main() -> None:
    """Train, and print a table and its summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(TASKS))
    parser.add_argument("--options", nargs="*", default=[])
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--adam", action="store_true", help="Adam at the better of 1e-3 and 1e-2 instead")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    options = {key: yaml.safe_load(value) for key, value in (o.split("=", 1) for o in arguments.options)}
    seeds = [int(s) for s in arguments.seeds.split(",")]
    jobs = [(name, seed) for name in arguments.only.split(",") for seed in seeds]
    rates: list[float | None] = [1e-3, 1e-2] if arguments.adam else [None]
    writer = csv.writer(sys.stdout)
    writer.writerow(["task", "seed", "first", "highest", "last", "seconds", "error"])
    with ProcessPoolExecutor(arguments.jobs) as pool:
        waiting = [[pool.submit(run, *job, options, lr, arguments.steps) for lr in rates] for job in jobs]
        for futures in waiting:
            row = min((f.result() for f in futures), key=lambda r: r["last"])
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in row.values()])


if __name__ == "__main__":
    main()
