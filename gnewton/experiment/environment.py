"""What a run ran on: versions, hardware, source code, command line."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import gnewton

PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "hydra-core", "omegaconf")


def describe_environment(
    device: torch.device, command: Sequence[str], overrides: Sequence[str]
) -> dict[str, Any]:
    """Versions, hardware, git commit and command line, ready for JSON.

    Args:
        device: the device of the run.
        command: the command line; for runs of a sweep, that of the sweep.
        overrides: the overrides of this run.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
        "directory": str(Path.cwd()),
        "overrides": list(overrides),
        "gnewton": gnewton.__version__,
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout the package runs from, and whether it was modified; None outside a checkout."""
    root = Path(gnewton.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def processor() -> str:
    """The name of the processor, as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
