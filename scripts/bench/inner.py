"""What a summary costs where the model forms gradients inside: both engines, in gradients of the loss.

    python scripts/bench/inner.py [--only burgers,critic] [--threads 1] [--repeats 5] [--out FILE.csv]

The sides take turns in one process, by its processor time, and the least time of each counts. Traces are made
before the clock starts; the column ``trace_ms`` has their time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, vmap

from gnewton.models.analytic import PoissonNetwork
from gnewton.partition import Partition
from gnewton.summary import Summarizer

sys.path.insert(0, str(Path(__file__).parent))
from summary import CLOCKS, clock, mlp, selected, write_table


class Inside(nn.Module):
    """A network inside a function of itself and the inputs."""

    def __init__(self, net: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net = net
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """The value of the function."""
        return self.function(self.net, x)


def slope(y: Tensor, x: Tensor) -> Tensor:
    """∂(Σ y)/∂x, with its graph."""
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


def burgers(net: nn.Module, x: Tensor) -> Tensor:
    """u_t + u u_x − ν u_xx."""
    x = x.detach().requires_grad_()
    u = net(x)
    first = slope(u, x)
    return first[:, :1] + u * first[:, 1:] - 0.01 * slope(first[:, 1], x)[:, 1:]


def laplacian(net: nn.Module, x: Tensor) -> Tensor:
    """Δu by ``torch.func``, point by point."""
    second = vmap(hessian(lambda point: net(point[None]).squeeze()))(x)
    return second.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)


def penalised(net: nn.Module, x: Tensor) -> Tensor:
    """WGAN-GP: scores of two halves, and the penalty on the slope between them."""
    real, fake = x.chunk(2)
    share = torch.rand(len(real), *[1] * (x.dim() - 1))
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    length = slope(net(between), between).flatten(1).norm(2, dim=1)
    return net(fake).mean() - net(real).mean() + 10 * (length - 1).square().mean()


def adapted(net: nn.Module, x: Tensor) -> Tensor:
    """MAML: the outputs on the second half after a step on the first."""
    support, query = x.chunk(2)
    fast: dict[str, Tensor] = dict(net.named_parameters())
    loss = functional_call(net, fast, (support,)).square().mean()
    grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
    fast = {name: p - 0.1 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
    return functional_call(net, fast, (query,)).square().mean()


class OwnSwish(torch.autograd.Function):
    """x σ(x), which keeps its argument alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The value."""
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        """The derivative."""
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s + x * s * (1 - s))


class Swish(nn.Module):
    """An activation by an own function."""

    def forward(self, x: Tensor) -> Tensor:
        """The value."""
        return OwnSwish.apply(x)  # type: ignore[no-any-return]


def plain(net: nn.Module, x: Tensor) -> Tensor:
    """The outputs."""
    return net(x)


def dcgan_critic() -> nn.Module:
    """Three strided convolutions on 32 × 32 pixels."""
    layers: list[nn.Module] = []
    for a, b in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 4, stride=2, padding=1), nn.LeakyReLU(0.2, inplace=True)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 1))


class Leaky(nn.LeakyReLU):
    """An activation that writes in place."""

    def __init__(self) -> None:
        super().__init__(0.2, inplace=True)


def mean_square(outputs: Tensor, _: Tensor) -> Tensor:
    """The mean squared residual, or the loss itself."""
    return outputs.square().mean() if outputs.dim() else outputs


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], Tensor], tuple[int, ...]]] = {
    "poisson": (lambda: PoissonNetwork([2, 32, 32, 1], "tanh"), plain, (100, 2)),
    "burgers": (lambda: mlp([2, 32, 32, 32, 1], nn.Tanh), burgers, (200, 2)),
    "burgers-wide": (lambda: mlp([2, 128, 128, 128, 128, 1], nn.Tanh), burgers, (2000, 2)),
    "laplacian": (lambda: mlp([2, 64, 64, 64, 1], nn.Tanh), laplacian, (500, 2)),
    "critic": (lambda: mlp([64, 256, 256, 1], Leaky), penalised, (256, 64)),
    "critic-small": (lambda: mlp([2, 64, 64, 1], Leaky), penalised, (64, 2)),
    "critic-images": (dcgan_critic, penalised, (64, 3, 32, 32)),
    "maml": (lambda: mlp([32, 64, 64, 5], nn.Tanh), adapted, (50, 32)),
    "maml-images": (lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(576, 5),
    ), adapted, (50, 1, 28, 28)),
    "own-function": (lambda: mlp([64, 256, 256, 10], Swish), plain, (256, 64)),
    "own-function-small": (lambda: mlp([8, 32, 32, 1], Swish), plain, (64, 8)),
}  # fmt: skip


def measure(name: str, repeats: int) -> dict[str, object]:
    """The row of a case."""
    build, function, shape = CASES[name]
    torch.manual_seed(0)
    model = Inside(build(), function)
    x, y = torch.randn(shape), torch.zeros(())
    partition = Partition.per_tensor(model)
    named = dict(model.named_parameters())
    seconds = partial(clock, device=x.device, now=CLOCKS["cpu"])

    def gradient() -> dict[str, Tensor]:
        grads = torch.autograd.grad(mean_square(model(x), y), list(named.values()), allow_unused=True)
        pairs = zip(named.items(), grads, strict=True)
        return {name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs}

    direction = gradient()
    made = {
        "tangent": Summarizer(model, mean_square, partition, engine="tangent"),
        "reference": Summarizer(model, mean_square, partition, engine="reference"),
    }
    sides: dict[str, Callable[[], Any]] = {"gradient": gradient}
    sides |= {engine: partial(side.summarize, x, y, direction) for engine, side in made.items()}
    first = seconds(sides["tangent"])
    a, b = (sides[engine]() for engine in ("tangent", "reference"))
    times: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, call in sides.items():
            times[side].append(min(seconds(call) for _ in range(5 if side == "gradient" else 1)))
    least = {side: min(values) for side, values in times.items()}
    return {
        "model": name,
        "groups": len(partition),
        "batch": shape[0],
        "gradient_ms": 1e3 * least["gradient"],
        "tangent": least["tangent"] / least["gradient"],
        "reference": least["reference"] / least["gradient"],
        "ratio": least["reference"] / least["tangent"],
        "trace_ms": 1e3 * (first - least["tangent"]),
        "difference": float((a.hessian - b.hessian).norm() / b.hessian.norm()),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default=",".join(CASES), help="models, comma-separated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/inner.csv"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    wanted = selected(parser, options.only, CASES)
    print(f"{'model':14}   groups     batch  gradient   tangent reference     ratio  trace ms  difference")
    measure("critic-small", 1)  # what the first trace of a process loads
    rows = []
    for name in wanted:
        rows.append(measure(name, options.repeats))
        shown = [f"{v:9.3g}" if isinstance(v, float) else f"{v:>9}" for v in list(rows[-1].values())[1:9]]
        print(f"{name:14}" + " ".join(shown), flush=True)
    write_table(options.out, rows)


if __name__ == "__main__":
    main()
