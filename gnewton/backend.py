"""The machine: processes that share a batch, the compiler, free memory, and its record in a run folder."""

from __future__ import annotations

import logging
import os
import platform
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gnewton.errors import InputError, first_line

if dist.is_available():
    # Optimizers of torch and tracing import this module. Its functions take the process group of that moment
    # as a default argument. Imported after init_process_group, it would keep the group and Gloo's threads
    # alive beyond destroy_process_group, and a thread that runs while the interpreter ends aborts it.
    import torch.distributed.nn


def world_size() -> int:
    """The number of processes; 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_processes(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The sum of each tensor over all processes, by one all-reduce; the tensors themselves in one process.

    Args:
        tensors: of one type and device, in the same shapes in every process.
    """
    if world_size() == 1:
        return list(tensors)
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(packed)
    pieces = packed.split([tensor.numel() for tensor in tensors])
    return [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


def mean_over_processes(tensors: Sequence[Tensor], samples: int) -> list[Tensor]:
    """The means over the global batch of tensors that are means over each process's own ``samples``."""
    if world_size() == 1:
        return list(tensors)
    count = tensors[0].new_tensor(samples)
    *sums, total = sum_over_processes([*(tensor * samples for tensor in tensors), count])
    return [piece / total for piece in sums]


def require_compiler(device: torch.device, option: str, instead: str) -> None:
    """Check that torch.compile works on a device.

    Args:
        option: the option that needs it, as the user wrote it.
        instead: the value to use without a compiler.

    Raises:
        InputError: if it does not; the message names the option and the reason.
    """
    reason = compiler_failure(device)
    if reason:
        raise InputError(f"{option}: torch.compile does not work on this machine ({reason}); use {instead}")


def compiler_failure(device: torch.device) -> str:
    """The reason why torch.compile does not work on a device, in torch's words; empty where it works.

    A small function is compiled and run, since only that shows it.
    """
    with _quiet():
        try:
            probe: Any = torch.compile(_probe)
            probe(torch.ones(2, device=device))
        except Exception as error:  # of the compiler, the linker, Triton, …: these have no common type
            return first_line(error, with_type=True)
    return ""


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warning that a machine with CUDA's tools has no device."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _probe(x: Tensor) -> Tensor:
    return torch.sin(x) + 1


def transformed() -> bool:
    """Whether a transform of ``torch.func`` (grad, vmap, jvp …) is at work, whose tensors end with it."""
    return torch._C._functorch.peek_interpreter_stack() is not None


def free_memory(device: torch.device) -> int:
    """Free bytes on a device; a large number where the system does not tell."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


SHARE = 0.5
"""Share of the free memory that a computation may take where no limit is set."""

SMALL = 1 << 28
"""Bytes below which the free memory is not queried."""


def memory_limit(needed: int, limit: int | None, device: torch.device) -> int:
    """The bytes that a computation may take that needs ``needed`` at once: ``limit``, if one is set."""
    if limit is not None:
        return limit
    return int(SHARE * free_memory(device)) if needed > SMALL else needed


def is_exhausted(error: BaseException) -> bool:
    """Whether an exception means that memory is exhausted; torch has no type for that on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "hydra-core", "omegaconf")


def describe_environment(
    device: torch.device, command: Sequence[str], overrides: Sequence[str], version: str
) -> dict[str, Any]:
    """Versions, hardware, git commit and command line, ready for JSON.

    Args:
        device: the device of the run.
        command: the command line; for runs of a sweep, that of the sweep.
        overrides: the overrides of this run.
        version: of this package.
    """
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(command),
        "directory": str(Path.cwd()),
        "overrides": list(overrides),
        "gnewton": version,
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
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    """Commit of the checkout the package runs from, and whether it was modified; None outside a checkout."""
    root = Path(__file__).resolve().parent.parent
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
