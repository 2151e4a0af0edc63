"""``python -m scripts.faults``: inject faults, and print how many of each kind were survived."""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import gnewton
from scripts.faults import arithmetic, inputs, interruptions, storage
from scripts.faults.forks import Count, warm_up

Injector = Callable[[int, Path, int], Count]

KINDS: dict[str, tuple[Injector, int]] = {
    "SIGKILL at a random moment": (interruptions.killed, 200),
    "SIGINT, SIGTERM or SIGUSR1 at a random moment": (interruptions.signalled, 45),
    "checkpoint cut off or changed": (interruptions.damaged, 40),
    "full disk": (storage.full_disk, 30),
    "folder or file without permission": (storage.locked_places, 14),
    "folder, file or data removed during the run": (storage.vanished, 10),
    "32 processes at once, run folders": (storage.at_once, 3200),
    "loss, gradient or summary not finite": (arithmetic.not_finite, 54),
    "out of memory": (arithmetic.exhausted, 20),
    "hostile data file": (inputs.hostile_files, 70),
    "malformed overrides": (inputs.hostile_overrides, 500),
}
"""Each kind of fault by the name that is printed: what injects it, and how often."""


def main() -> int:
    """Inject the chosen faults; 0 if all of them were survived."""
    parser = argparse.ArgumentParser(prog="python -m scripts.faults", description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="part of the faults to inject, such as 0.1")
    parser.add_argument("--only", default="", help="inject only kinds whose name holds this text")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random moments, places and values")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a fork does not inherit the threads that a parallel loop would wait for
    print(f"gnewton {gnewton.__version__}, torch {torch.__version__}, Python {platform.python_version()}")
    print("\n| fault | injected | survived | seconds |\n|---|---|---|---|", flush=True)
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="gnewton-faults-") as name:
        place = Path(name)
        place.chmod(0o755)  # some faults are met by a user without privileges
        warm_up(place)
        for title, (inject, count) in KINDS.items():
            if options.only not in title:
                continue
            started = time.perf_counter()
            result = inject(max(round(options.share * count), 1), place / inject.__name__, options.seed)
            seconds = time.perf_counter() - started
            print(f"| {title} | {result.injected} | {result.survived} | {seconds:.0f} |", flush=True)
            failures += [f"{title}: {failure}" for failure in result.failures]
    print("\n".join(["", *failures]) if failures else "", file=sys.stderr)
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
