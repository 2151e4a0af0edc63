"""What a summary costs: in gradients, and against the reference engine (docs/performance.md).

    python scripts/bench/summary.py [--only mlp,lenet:500] [--sides gradient,tangent,reference,textbook]
                                    [--clock wall|cpu] [--threads 1] [--repeats 5] [--out FILE.csv]

Every figure of a row comes from one process; the sides take turns, and the least time of each is kept, which
is what a quiet machine would show. The trace is made before the clock starts. ``--clock cpu`` counts the time
of the process instead of that on the wall: for one thread on a machine that others use too.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import platform
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gnewton.partition import Partition
from gnewton.summary import Summarizer

sys.path.insert(0, str(Path(__file__).parent))
from textbook import textbook_summary


@dataclass(frozen=True)
class Case:
    """A network at one batch size, with the targets it is held to (None: only stated)."""

    name: str
    batch: int
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    most_gradients: float | None = None
    least_speedup: float | None = None


def mlp(widths: list[int], activation: type[nn.Module]) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Linear(a, b), *([activation()] if i < len(widths) - 2 else [])]
    return nn.Sequential(*layers)


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10),
    )  # fmt: skip


def vgg11() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None):
        if width is None:
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ELU()]
            channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10))


def resnet18() -> nn.Module:
    import torchvision

    net = torchvision.models.resnet18(num_classes=10)
    net.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    net.maxpool = nn.Identity()
    return net


def vit() -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(
        image_size=32, patch_size=4, num_layers=5, num_heads=4, hidden_dim=128, mlp_dim=512, num_classes=10
    )


MLP = [784, 1024, 200, 100, 10]
BIG_MLP = [3072, *[1024] * 20, 10]
GRAY, COLOUR = (1, 28, 28), (3, 32, 32)
CASES = [
    Case("mlp", 100, lambda: mlp(MLP, nn.Tanh), GRAY, 2.5, 5.0),
    Case("mlp", 1000, lambda: mlp(MLP, nn.Tanh), GRAY, 2.5, 3.5),
    Case("bigmlp", 100, lambda: mlp(BIG_MLP, nn.ELU), COLOUR, 12.0, 11.0),
    Case("lenet", 100, lenet, COLOUR, 5.0, 6.0),
    Case("lenet", 500, lenet, COLOUR, 3.0, 4.5),
    Case("vgg11", 32, vgg11, COLOUR, 6.0, 12.0),
    Case("vgg11", 100, vgg11, COLOUR, 6.0, 12.0),
    Case("resnet18", 32, resnet18, COLOUR),
    Case("vit", 32, vit, COLOUR),
]


class PeakMemory:
    """Peak memory of a block, in MiB beyond what was in use: of the device on CUDA, resident on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.mib = 0.0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start = torch.cuda.memory_allocated(self.device)
            return self
        self.start = self.peak = _resident()
        self.stop = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.002):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.mib = (torch.cuda.max_memory_allocated(self.device) - self.start) / 2**20
            return
        self.stop.set()
        self.watcher.join()
        self.mib = (max(self.peak, _resident()) - self.start) / 2**20


def _resident() -> int:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * 4096


def count_flops(function: Callable[[], object]) -> float:
    """Floating-point operations of the matrix products and convolutions of a call."""
    function()
    with FlopCounterMode(display=False) as counter:
        function()
    return float(counter.get_total_flops())


SIDES = ("gradient", "tangent", "reference", "textbook")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clock(function: Callable[[], object], device: torch.device, now: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = now()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - start


def measure(
    case: Case, device: torch.device, repeats: int, wanted: set[str], now: Callable[[], float]
) -> dict[str, object]:
    """One row of the table."""
    torch.manual_seed(0)
    model = case.build().to(device)
    inputs = torch.randn(case.batch, *case.shape, device=device)
    targets = torch.randint(0, 10, (case.batch,), device=device)
    parameters = dict(model.named_parameters())
    partition = Partition.from_names(model, [[name] for name in parameters])
    fast = Summarizer(model, F.cross_entropy, partition, engine="tangent")
    slow = Summarizer(model, F.cross_entropy, partition, engine="reference")

    def gradient() -> dict[str, Tensor]:
        loss = F.cross_entropy(model(inputs), targets)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    direction = gradient()
    sides: dict[str, Callable[[], object]] = {
        "gradient": gradient,
        "tangent": lambda: fast.summarize(inputs, targets, direction),
        "reference": lambda: slow.summarize(inputs, targets, direction),
        "textbook": lambda: textbook_summary(model, F.cross_entropy, inputs, targets, direction),
    }
    sides = {name: side for name, side in sides.items() if name in wanted}
    flops = {name: count_flops(sides[name]) for name in ("gradient", "tangent")}
    peaks: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        with PeakMemory(device) as memory:
            times[name].append(clock(side, device, now))
        peaks[name] = memory.mib
    for k in range(repeats):
        for name, side in sides.items():
            if name in ("gradient", "tangent") or k % 3 == 1:
                for _ in range(3 if name == "gradient" else 1):
                    times[name].append(clock(side, device, now))
    least: dict[str, float] = {name: min(values) for name, values in times.items()}
    row: dict[str, object] = {"network": case.name, "groups": len(partition), "batch": case.batch}
    row |= {f"{name}_ms": least[name] * 1e3 if name in least else "" for name in SIDES}
    row |= {
        "tangent_median_ms": statistics.median(times["tangent"]) * 1e3,
        "gradients": least["tangent"] / least["gradient"],
        "floor": flops["tangent"] / flops["gradient"],
        "tangent_gflop": flops["tangent"] / 1e9,
        "tangent_gflops_per_s": flops["tangent"] / least["tangent"] / 1e9,
        "most_gradients": case.most_gradients or "",
        "speedup": least["reference"] / least["tangent"] if "reference" in least else "",
        "speedup_over_textbook": least["textbook"] / least["tangent"] if "textbook" in least else "",
        "least_speedup": case.least_speedup or "",
        "relative_difference": _difference(sides),
    }
    row |= {f"{name}_mib": peaks.get(name, "") for name in SIDES}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    return row | {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _difference(sides: dict[str, Callable[[], object]]) -> object:
    """The largest relative difference between the tangent engine and a slower side, if one was asked for."""
    if "reference" not in sides and "textbook" not in sides:
        return ""
    fast: Any = sides["tangent"]()
    a = (fast.gradient, fast.hessian, fast.third)
    if "reference" in sides:
        slow: Any = sides["reference"]()
        b = (slow.gradient, slow.hessian, slow.third)
    else:
        found: Any = sides["textbook"]()
        b = found
    return max(((x - y).norm() / y.norm()).item() for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="networks, comma-separated, NAME or NAME:BATCH")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--sides", default=",".join(SIDES[:3]), help="which of " + ", ".join(SIDES))
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/summary.csv"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = set(filter(None, options.only.split(",")))
    sides = {"gradient", "tangent", *options.sides.split(",")}
    if unknown := sides - set(SIDES):
        parser.error(f"--sides: unknown {', '.join(sorted(unknown))}; must be among {', '.join(SIDES)}")
    rows = []
    print(
        "network    S  batch    gradient     tangent   reference    textbook  gradients  floor  x reference"
        "  x textbook  difference  peak MiB"
    )
    for case in CASES:
        if wanted and not wanted & {case.name, f"{case.name}:{case.batch}"}:
            continue
        row = measure(case, torch.device(options.device), options.repeats, sides, CLOCKS[options.clock])
        rows.append(row)
        print(
            f"{row['network']:<9} {row['groups']:>3} {row['batch']:>5}"
            + "".join(f" {_show(row[f'{name}_ms'], 11, '.1f')}" for name in SIDES)
            + f" {_show(row['gradients'], 10, '.2f')} {_show(row['floor'], 6, '.2f')}"
            + f" {_show(row['speedup'], 12, '.1f')} {_show(row['speedup_over_textbook'], 11, '.1f')}"
            + f" {_show(row['relative_difference'], 11, '.1e')}  "
            + "/".join(_show(row[f"{name}_mib"], 1, ".0f").strip() for name in SIDES),
            flush=True,
        )
    if not rows:
        parser.error(f"--only={options.only}: no such network")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {options.out}")


def _show(value: object, width: int, form: str) -> str:
    return f"{value:>{width}{form}}" if isinstance(value, float) else " " * width


if __name__ == "__main__":
    main()
