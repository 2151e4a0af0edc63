"""What a summary costs: in gradients, and against the reference engine (docs/performance.md).

    python scripts/bench/summary.py [--only mlp,lenet:500] [--device cpu] [--repeats 5] [--out FILE.csv]

Every figure of a row comes from one process; the three sides take turns, and the least time of each is kept,
which is what a quiet machine would show. The trace is made before the clock starts.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gnewton.partition import Partition
from gnewton.summary import Summarizer


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


def clock(function: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def measure(case: Case, device: torch.device, repeats: int, *, reference: bool) -> dict[str, object]:
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
    }
    flops = {name: count_flops(side) for name, side in sides.items()}
    peaks, times = {}, {name: [] for name in (*sides, "reference")}  # type: dict[str, float], dict[str, list[float]]
    for name, side in sides.items():
        side()
        with PeakMemory(device) as memory:
            side()
        peaks[name] = memory.mib
    error: object = ""
    if reference:
        with PeakMemory(device) as memory:
            times["reference"].append(clock(lambda: slow.summarize(inputs, targets, direction), device))
        peaks["reference"] = memory.mib
        a, b = fast.summarize(inputs, targets, direction), slow.summarize(inputs, targets, direction)
        assert a.third is not None
        assert b.third is not None
        pairs = [(a.gradient, b.gradient), (a.hessian, b.hessian), (a.third, b.third)]
        error = max(((x - y).norm() / y.norm()).item() for x, y in pairs)
    for k in range(repeats):
        for _ in range(3):
            times["gradient"].append(clock(gradient, device))
        times["tangent"].append(clock(sides["tangent"], device))
        if reference and k % 3 == 0:
            times["reference"].append(clock(lambda: slow.summarize(inputs, targets, direction), device))
    least = {name: min(values) for name, values in times.items() if values}
    row: dict[str, object] = {
        "network": case.name,
        "groups": len(partition),
        "batch": case.batch,
        "gradient_ms": least["gradient"] * 1e3,
        "tangent_ms": least["tangent"] * 1e3,
        "tangent_median_ms": statistics.median(times["tangent"]) * 1e3,
        "reference_ms": least["reference"] * 1e3 if reference else "",
        "gradients": least["tangent"] / least["gradient"],
        "floor": flops["tangent"] / flops["gradient"],
        "tangent_gflop": flops["tangent"] / 1e9,
        "tangent_gflops_per_s": flops["tangent"] / least["tangent"] / 1e9,
        "most_gradients": case.most_gradients or "",
        "speedup": least["reference"] / least["tangent"] if reference else "",
        "least_speedup": case.least_speedup or "",
        "relative_difference": error,
        "gradient_mib": peaks["gradient"],
        "tangent_mib": peaks["tangent"],
        "reference_mib": peaks.get("reference", ""),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="networks, comma-separated, NAME or NAME:BATCH")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/summary.csv"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = set(filter(None, options.only.split(",")))
    rows = []
    print(
        "network    S  batch  gradient ms  tangent ms  reference ms  gradients  floor  speed-up  difference"
        "  peak MiB (g/t/r)"
    )
    for case in CASES:
        if wanted and not wanted & {case.name, f"{case.name}:{case.batch}"}:
            continue
        row = measure(case, torch.device(options.device), options.repeats, reference=not options.no_reference)
        rows.append(row)
        print(
            f"{row['network']:<9} {row['groups']:>3} {row['batch']:>5} {row['gradient_ms']:>12.2f}"
            f" {row['tangent_ms']:>11.2f} {_show(row['reference_ms'], '13.1f')} {row['gradients']:>10.2f}"
            f" {row['floor']:>6.2f}"
            f" {_show(row['speedup'], '9.1f')} {_show(row['relative_difference'], '11.1e')}"
            f"  {row['gradient_mib']:.0f}/{row['tangent_mib']:.0f}/{_show(row['reference_mib'], '.0f')}",
            flush=True,
        )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {options.out}")


def _show(value: object, form: str) -> str:
    return format(value, form) if isinstance(value, float) else " " * int(float(form.split(".")[0] or 0))


if __name__ == "__main__":
    main()
