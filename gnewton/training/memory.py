"""The peak memory of a run."""

from __future__ import annotations

import resource
import sys

import torch


def forget_peak_memory(device: torch.device) -> None:
    """Begin a new maximum, where that is possible (on CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory so far, in MiB: of the device's allocator on CUDA, of the whole process elsewhere."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)
