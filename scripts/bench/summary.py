"""What a summary costs: in gradients, and against the reference engine (docs/performance.md).

    python scripts/bench/summary.py [--only mlp,lenet:500] [--sides tangent,compiled,reference,textbook]
                                    [--precision float32|tf32|bfloat16] [--clock wall|cpu] [--threads 1]
                                    [--repeats 5] [--out FILE.csv]

Every figure of a row comes from one process; the sides take turns, and the least time of each is kept, which
is what a quiet machine would show. Traces are made, and compiled, before the clock starts (column first s).
``--clock cpu`` counts the time of the process instead of that on the wall: for one thread on a machine that
others use too.
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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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


ENGINES = ("tangent", "compiled")
COMPARED = ("gradient", "reference", "textbook")
SIDES = ("gradient", *ENGINES, "reference", "textbook")
PRECISIONS = ("float32", "tf32", "bfloat16")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def clock(function: Callable[[], object], device: torch.device, now: Callable[[], float]) -> float:
    """Seconds of a call by the clock ``now``, one of :data:`CLOCKS`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = now()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return now() - start


def measure(
    case: Case,
    device: torch.device,
    repeats: int,
    wanted: set[str],
    now: Callable[[], float],
    precision: str = "float32",
) -> list[dict[str, object]]:
    """A row of the table for each of our engines that is wanted."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    tf32 = precision == "tf32"
    model = case.build().to(device, dtype)
    inputs = torch.randn(case.batch, *case.shape, device=device, dtype=dtype)
    targets = torch.randint(0, 10, (case.batch,), device=device)
    parameters = dict(model.named_parameters())
    partition = Partition.per_tensor(model)

    def gradient() -> dict[str, Tensor]:
        loss = F.cross_entropy(model(inputs), targets)
        return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))

    direction = gradient()
    sides: dict[str, Callable[[], object]] = {"gradient": gradient}
    for engine in (*ENGINES, "reference"):
        if engine in wanted:
            summarizer = Summarizer(model, F.cross_entropy, partition, engine=engine, tf32=tf32)  # type: ignore[arg-type]
            sides[engine] = partial(summarizer.summarize, inputs, targets, direction)
    if "textbook" in wanted:
        sides["textbook"] = partial(textbook_summary, model, F.cross_entropy, inputs, targets, direction)
    plain = Summarizer(model, F.cross_entropy, partition, engine="tangent")
    flops = count_flops(lambda: plain.summarize(inputs, targets, direction))
    floor = flops / count_flops(gradient)
    first: dict[str, float] = {}
    peaks: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for name, side in sides.items():
        with PeakMemory(device) as memory:  # of the first call: later ones find memory that is resident
            seconds = clock(side, device, time.perf_counter if name in ENGINES else now)
        if name in ENGINES:  # traces, and compiles
            first[name] = seconds
        else:
            times[name].append(seconds)
        if name == "compiled":  # the compiler's own memory does not count
            with PeakMemory(device) as memory:
                side()
        peaks[name] = memory.mib
    for k in range(repeats):
        for name, side in sides.items():
            if name in ("gradient", *ENGINES) or k % 3 == 1:
                for _ in range(3 if name == "gradient" else 1):
                    times[name].append(clock(side, device, now))
    least: dict[str, float] = {name: min(values) for name, values in times.items()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu"
    rows: list[dict[str, object]] = []
    for engine in [engine for engine in ENGINES if engine in sides]:
        row: dict[str, object] = {"network": case.name, "groups": len(partition), "batch": case.batch}
        row |= {"engine": engine, "first_s": first[engine], "summary_ms": least[engine] * 1e3}
        row |= {f"{side}_ms": least[side] * 1e3 if side in least else "" for side in COMPARED}
        row |= {
            "summary_median_ms": statistics.median(times[engine]) * 1e3,
            "gradients": least[engine] / least["gradient"],
            "floor": floor,
            "summary_gflop": flops / 1e9,
            "summary_gflops_per_s": flops / least[engine] / 1e9,
            "most_gradients": case.most_gradients or "",
            "speedup": least["reference"] / least[engine] if "reference" in least else "",
            "speedup_over_textbook": least["textbook"] / least[engine] if "textbook" in least else "",
            "least_speedup": case.least_speedup or "",
            "relative_difference": _difference(sides, engine),
            "precision": precision,
            "summary_mib": peaks[engine],
        }
        row |= {f"{side}_mib": peaks.get(side, "") for side in COMPARED}
        rows.append(row | {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__})
    return rows


def _difference(sides: dict[str, Callable[[], object]], engine: str) -> object:
    """The largest relative difference between an engine and a slower side, if one was asked for."""
    if "reference" not in sides and "textbook" not in sides:
        return ""
    fast: Any = sides[engine]()
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
    parser.add_argument("--sides", default="tangent,reference", help="which of " + ", ".join(SIDES))
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench/summary.csv"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    wanted = set(filter(None, options.only.split(",")))
    sides = {"gradient", *options.sides.split(",")}
    if unknown := sides - set(SIDES):
        parser.error(f"--sides: unknown {', '.join(sorted(unknown))}; must be among {', '.join(SIDES)}")
    if not sides & set(ENGINES):
        parser.error(f"--sides: must name one of {', '.join(ENGINES)}")
    device, now = torch.device(options.device), CLOCKS[options.clock]
    if device.type == "cuda":  # the gradient that summaries are compared with takes the same precision
        torch.backends.cuda.matmul.allow_tf32 = options.precision == "tf32"
        torch.backends.cudnn.allow_tf32 = options.precision == "tf32"
    rows = []
    print(
        "network    S  batch engine    first s  gradient   summary  reference   textbook  gradients  floor"
        "  x reference  x textbook  difference  peak MiB"
    )
    for case in CASES:
        if wanted and not wanted & {case.name, f"{case.name}:{case.batch}"}:
            continue
        for row in measure(case, device, options.repeats, sides, now, options.precision):
            rows.append(row)
            print(
                f"{row['network']:<9} {row['groups']:>3} {row['batch']:>5} {row['engine']:<9}"
                f" {_show(row['first_s'], 7, '.1f')} {_show(row['gradient_ms'], 9, '.1f')}"
                + "".join(f" {_show(row[f'{name}_ms'], 10, '.1f')}" for name in ("summary", *COMPARED[1:]))
                + f" {_show(row['gradients'], 10, '.2f')} {_show(row['floor'], 6, '.2f')}"
                + f" {_show(row['speedup'], 12, '.1f')} {_show(row['speedup_over_textbook'], 11, '.1f')}"
                + f" {_show(row['relative_difference'], 11, '.1e')}  "
                + "/".join(_show(row[f"{name}_mib"], 1, ".0f").strip() for name in ("summary", *COMPARED)),
                flush=True,
            )
    if not rows:
        parser.error(f"--only={options.only}: no such network")
    write_table(options.out, rows)


def selected(parser: argparse.ArgumentParser, only: str, known: Collection[str]) -> list[str]:
    """The names in ``--only``; the program ends if one is unknown."""
    wanted = only.split(",")
    if unknown := set(wanted) - set(known):
        parser.error(f"--only: unknown {', '.join(sorted(unknown))}; must be among {', '.join(known)}")
    return wanted


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}")


def _show(value: object, width: int, form: str) -> str:
    return f"{value:>{width}{form}}" if isinstance(value, float) else " " * width


if __name__ == "__main__":
    main()
