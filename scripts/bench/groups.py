"""What a Gauss–Newton matrix costs against the number of groups, beside two peers (docs/performance.md).

    python scripts/bench/groups.py [--network mlp] [--most 4096] [--peers 64] [--repeats 3] [--out FOLDER]

Groups are blocks of output channels, in one process whose sides take turns; the least processor time of each
is kept, in gradients. The peers form Uᵀ J ᵀΛ J U from S tangents of the outputs by vmap(jvp), and from S
matrix-vector products of curvlinops, if that is installed; they are timed up to ``--peers`` groups.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from gnewton.partition import Partition
from gnewton.summary import Summarizer
from gnewton.summary.group_parts import GroupDirections

sys.path.insert(0, str(Path(__file__).parent))
from summary import CASES

SIDES = ("gauss_newton", "fisher", "vmap_jvp", "curvlinops")


def wide() -> nn.Module:
    """A network of 4,106 output channels."""
    return nn.Sequential(
        nn.Linear(784, 2048), nn.Tanh(), nn.Linear(2048, 2048), nn.Tanh(), nn.Linear(2048, 10)
    )


def partitions(model: nn.Module, most: int) -> list[Partition]:
    """One group of everything, then blocks of ever fewer output channels."""
    by_size = {1: Partition.single(model)}
    for power in range(12, -1, -1):
        blocks = Partition.row_blocks(model, 2**power)
        if len(blocks) <= most:
            by_size[len(blocks)] = blocks
    return [by_size[size] for size in sorted(by_size)]


def jvp_matrix(model: nn.Module, x: Tensor, y: Tensor, stacked: dict[str, Tensor]) -> Tensor:
    """Σ_n (J_n U)ᵀ (diag p − ppᵀ) (J_n U) / N by S tangents of the outputs."""
    fixed = {name: p.detach() for name, p in model.named_parameters()}

    def outputs(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(model, parameters, (x,))

    moved = vmap(lambda u: jvp(outputs, (fixed,), (u,))[1])(stacked)
    p = torch.softmax(model(x).detach(), 1)
    centred = moved - (moved * p).sum(2, keepdim=True)
    return (centred * p).flatten(1) @ centred.flatten(1).T / len(x)


def curvlinops_matrix(model: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """U Ḡ Uᵀ by one product for each row of U, (S, P)."""
    from curvlinops import GGNLinearOperator  # type: ignore[import-untyped]

    parameters = list(model.parameters())
    operator = GGNLinearOperator(
        model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
    )
    return rows @ (operator @ rows.T)


def has_curvlinops() -> bool:
    """Whether the peer is installed."""
    try:
        import curvlinops  # noqa: F401
    except ImportError:
        return False
    return True


def measure(
    model: nn.Module, x: Tensor, y: Tensor, partition: Partition, peers: int, repeats: int
) -> dict[str, float]:
    """The time of a gradient in seconds and of every side in gradients."""
    names = [name for name, _ in model.named_parameters()]
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    parameters = list(model.parameters())
    sides: dict[str, Callable[[], object]] = {
        "gradient": lambda: torch.autograd.grad(F.cross_entropy(model(x), y), parameters)
    }
    for matrix in SIDES[:2]:
        summarizer = Summarizer(model, F.cross_entropy, partition, curvature=matrix, engine="tangent")
        sides[matrix] = partial(summarizer.summarize, x, y, direction)
    if len(partition) <= peers:
        zero = [torch.zeros_like(direction[name]) for name in names]
        rows = [[z if u is None else u for u, z in zip(row, zero, strict=True)] for row in
                GroupDirections(partition, direction, names)]  # fmt: skip
        stacked = {name: torch.stack([row[i] for row in rows]) for i, name in enumerate(names)}
        sides["vmap_jvp"] = partial(jvp_matrix, model, x, y, stacked)
        if has_curvlinops():
            flat = torch.stack([torch.cat([u.reshape(-1) for u in row]) for row in rows])
            sides["curvlinops"] = partial(curvlinops_matrix, model, x, y, flat)
    least = dict.fromkeys(sides, float("inf"))
    for side in sides.values():
        side()
    for _ in range(repeats):
        for name, side in sides.items():
            start = time.process_time()
            side()
            least[name] = min(least[name], time.process_time() - start)
    return {
        "gradient_s": least["gradient"],
        **{s: least[s] / least["gradient"] for s in sides if s != "gradient"},
    }


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """The curves, on two logarithmic axes."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(5.0, 3.6), layout="constrained")
    axis = canvas.subplots()
    for side in SIDES:
        points = [(row["groups"], row[side]) for row in rows if side in row]
        if points:
            axis.loglog(*zip(*points, strict=True), "o-", markersize=3, label=side)
    axis.set_xlabel("groups S")
    axis.set_ylabel("cost in gradients")
    axis.legend(frameon=False)
    canvas.savefig(path, dpi=150)


def main() -> None:
    """Print, write and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="wide", help="wide, or a network of scripts/bench/summary.py")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--most", type=int, default=4200)
    parser.add_argument("--peers", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case = next((case for case in CASES if case.name == options.network), None)
    model = (wide() if case is None else case.build()).eval()
    shape, batch = ((784,), options.batch) if case is None else (case.shape, case.batch)
    x, y = torch.randn(batch, *shape), torch.randint(0, 10, (batch,))
    options.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float]] = []
    for partition in partitions(model, options.most):
        row = measure(model, x, y, partition, options.peers, options.repeats)
        rows.append({"groups": len(partition), **row})
        print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    with (options.out / f"groups_{options.network}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("groups", "gradient_s", *SIDES))
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, options.out / f"groups_{options.network}.png")


if __name__ == "__main__":
    main()
