"""What derivatives of the loss along each group cost up to order 8, in gradients (docs/performance.md).

    python scripts/bench/taylor.py [--only mlp,lenet] [--orders 1,2,3,4,5,6,7,8] [--repeats 3] [--threads 1]
                                   [--most 60] [--out FILE.csv]

Both ways run in one process and take turns: power series through the traced loss (``LossDerivatives``), and
the loss differentiated by nested ``torch.func.jvp``, batched over the groups by ``vmap``. The least processor
time of each is kept. The nested way ends at the order whose first call takes longer than ``--most`` seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap

from gnewton.partition import Partition
from gnewton.summary import LossDerivatives

sys.path.insert(0, str(Path(__file__).parent))
from summary import CLOCKS, COLOUR, GRAY, clock, lenet, mlp, selected, write_table

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: mlp([784, 200, 100, 10], nn.Tanh), GRAY),
    "lenet": (lenet, COLOUR),
}
BATCH = 100


def nested(model: nn.Module, x: Tensor, y: Tensor, direction: dict[str, Tensor], order: int) -> Tensor:
    """The derivatives of orders 0 … ``order`` along every parameter tensor, (S, order + 1)."""
    theta = {name: p.detach() for name, p in model.named_parameters()}
    one = torch.ones((), dtype=x.dtype)

    def along(mask: Tensor) -> tuple[Tensor, ...]:
        def loss(t: Tensor) -> tuple[Tensor, ...]:
            moved = {name: p + t * mask[s] * direction[name] for s, (name, p) in enumerate(theta.items())}
            return (F.cross_entropy(functional_call(model, moved, (x,)), y),)

        def tower(n: int) -> Callable[[Tensor], tuple[Tensor, ...]]:
            if n == 0:
                return loss
            lower = tower(n - 1)

            def rise(t: Tensor) -> tuple[Tensor, ...]:
                values, tangents = jvp(lower, (t,), (one,))[:2]
                return (*values, tangents[-1])

            return rise

        return tower(order)(torch.zeros_like(one))

    return torch.stack(vmap(along)(torch.eye(len(theta), dtype=x.dtype)), 1)


def measure(name: str, orders: list[int], repeats: int, most: float) -> list[dict[str, object]]:
    """One row for each order of one network."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build()
    x, y = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    named = dict(model.named_parameters())
    partition = Partition.per_tensor(model)

    def gradient() -> dict[str, Tensor]:
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(named.values()))
        return dict(zip(named, grads, strict=True))

    seconds = partial(clock, device=x.device, now=CLOCKS["cpu"])
    direction = gradient()
    along_groups = LossDerivatives(model, F.cross_entropy, partition, engine="taylor")
    along_groups.derivatives(x, y, direction, 1)  # traces
    rows: list[dict[str, object]] = []
    within = True
    for order in orders:
        sides: dict[str, Callable[[], Tensor]] = {
            "taylor": partial(along_groups.derivatives, x, y, direction, order),
            "nested": partial(nested, model, x, y, direction, order),
        }
        times: dict[str, list[float]] = {"gradient": [], "taylor": [], "nested": []}
        gap: object = ""
        if within:
            times["nested"].append(seconds(sides["nested"]))
            a, b = sides["taylor"](), sides["nested"]().double()
            gap = ((a - b).norm(dim=0) / b.norm(dim=0)).max().item()
            within = times["nested"][0] <= most
        for _ in range(repeats):
            times["gradient"].append(min(seconds(gradient) for _ in range(5)))
            times["taylor"].append(min(seconds(sides["taylor"]) for _ in range(3)))
            if within:
                times["nested"].append(seconds(sides["nested"]))
        least = {side: min(values) for side, values in times.items() if values}
        row: dict[str, object] = {"network": name, "groups": len(partition), "batch": BATCH, "order": order}
        row |= {"gradient_ms": 1e3 * least["gradient"], "taylor": least["taylor"] / least["gradient"]}
        row["nested"] = least["nested"] / least["gradient"] if "nested" in least else ""
        row["ratio"] = least["nested"] / least["taylor"] if "nested" in least else ""
        rows.append(row | {"difference": gap, "threads": torch.get_num_threads(), "torch": torch.__version__})
        shown = [f"{v:9.3g}" if isinstance(v, float) else f"{v:>9}" for v in list(row.values())[1:]]
        print(f"{name:8}" + " ".join(shown) + f"  {gap if gap == '' else format(gap, '.0e')}", flush=True)
    return rows


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="mlp,lenet", help="networks, comma-separated")
    parser.add_argument("--orders", default="1,2,3,4,5,6,7,8", help="comma-separated")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--most", type=float, default=60.0, help="seconds for a call of the nested way")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/taylor.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = selected(parser, options.only, NETWORKS)
    print("network    groups     batch     order  gradient    taylor    nested     ratio  difference")
    orders = [int(order) for order in options.orders.split(",")]
    rows = [row for name in wanted for row in measure(name, orders, options.repeats, options.most)]
    write_table(options.out, rows)


if __name__ == "__main__":
    main()
