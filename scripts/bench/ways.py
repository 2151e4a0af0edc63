"""How well the counts of ``way_costs`` tell the faster way to a Gauss–Newton matrix (docs/performance.md).

    python scripts/bench/ways.py [--only mlp:100,vit] [--groups 2,3,5,9] [--repeats 3] [--out FILE.csv]

Both ways take turns in one process with one thread; the least processor time of each counts, in gradients.
Groups are runs of consecutive tensors, as equal as possible, or blocks of output channels (``--slices``).
``chosen`` is the way that ``auto`` takes, and ``loss`` its time over that of the faster way.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition
from gnewton.summary import Summarizer
from gnewton.summary.tangent.way_costs import operations

sys.path.insert(0, str(Path(__file__).parent))
from groups import partitions, wide
from summary import CASES, GRAY, Case, mlp, write_table

WAYS = ("rows", "tangents")
GROUPS = (2, 3, 5, 7, 9, 13, 17, 25, 35, 50, 70)
MORE = [
    Case("wide", 100, wide, (784,)),
    Case("deep", 100, lambda: mlp([784, *[100] * 8, 10], nn.Tanh), GRAY),
    Case("binary", 100, lambda: mlp([784, 300, 100, 2], nn.ReLU), GRAY),
    Case("labels100", 100, lambda: mlp([784, 300, 300, 100], nn.ReLU), GRAY),
]


def runs(model: nn.Module, size: int) -> Partition:
    """Groups of consecutive tensors, ``size`` of them as far as there are as many tensors."""
    names = [name for name, _ in model.named_parameters()]
    size = min(size, len(names))
    bounds = [len(names) * s // size for s in range(size + 1)]
    return Partition.from_names(model, {f"run{s}": names[bounds[s] : bounds[s + 1]] for s in range(size)})


def sides(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, partition: Partition
) -> tuple[dict[str, Callable[[], object]], Summarizer]:
    """The gradient and both ways, and the summarizer that goes by rows."""
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    parameters = list(model.parameters())
    found: dict[str, Callable[[], object]] = {
        "gradient": lambda: torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    }
    for way in reversed(WAYS):
        made = Summarizer(model, F.cross_entropy, partition, curvature="gauss_newton", engine="tangent")
        engine: Any = made.tangent_engine
        engine.way = way
        found[way] = partial(made.summarize, x, y, direction)
    return found, made


def chosen_partitions(model: nn.Module, sizes: list[int], *, slices: bool) -> list[Partition]:
    """The partitions of a network to measure."""
    if slices:
        return [partition for partition in partitions(model, max(sizes)) if len(partition) > 1]
    most = len(list(model.parameters()))
    return [runs(model, size) for size in sorted({min(size, most) for size in sizes})]


def measure(case: Case, model: nn.Module, partition: Partition, repeats: int) -> dict[str, object]:
    """A row of the table."""
    torch.manual_seed(0)
    x, y = torch.randn(case.batch, *case.shape), torch.randint(0, 2, (case.batch,))
    timed, made = sides(model, x, y, partition)
    for side in timed.values():
        for _ in range(2):  # traces, and finds the places of the samples; so does the 4th call
            side()
    least = dict.fromkeys(timed, float("inf"))
    for _ in range(repeats):
        for name, side in timed.items():
            for _ in range(3 if name == "gradient" else 1):
                start = time.process_time()
                side()
                least[name] = min(least[name], time.process_time() - start)
    engine: Any = made.tangent_engine
    ((trace, rows),) = engine._rows.items()
    by_rows, by_tangents = operations(trace.plan, rows, max(rows.width - 1, 1))
    chosen = "rows" if by_rows < by_tangents else "tangents"
    faster = min(WAYS, key=least.__getitem__)
    return {
        "network": case.name,
        "batch": case.batch,
        "groups": len(partition),
        "sliced": partition.sliced,
        "gradient_ms": 1e3 * least["gradient"],
        **{way: least[way] / least["gradient"] for way in WAYS},
        "counted_rows": by_rows,
        "counted_tangents": by_tangents,
        "faster": faster,
        "chosen": chosen,
        "loss": least[chosen] / least[faster],
    }


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", default="mlp,lenet,wide,deep,binary,labels100,bigmlp,vit")
    parser.add_argument("--groups", default=",".join(map(str, GROUPS)))
    parser.add_argument("--slices", action="store_true", help="blocks of output channels instead of tensors")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/ways.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = set(options.only.split(","))
    rows: list[dict[str, object]] = []
    for case in [*CASES, *MORE]:
        if not wanted & {case.name, f"{case.name}:{case.batch}"}:
            continue
        torch.manual_seed(0)
        model = case.build().eval()
        sizes = list(map(int, options.groups.split(",")))
        for partition in chosen_partitions(model, sizes, slices=options.slices):
            row = measure(case, model, partition, options.repeats)
            rows.append(row)
            print("  ".join(f"{v:.4g}" if isinstance(v, float) else f"{v}" for v in row.values()), flush=True)
    if not rows:
        parser.error(f"--only={options.only}: no such network")
    write_table(options.out, rows)


if __name__ == "__main__":
    main()
