"""Device, number type and random streams of a run."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from gnewton.errors import InputError
from gnewton.training.settings import TrainerSettings

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The torch device named by ``trainer.device``; "auto" takes CUDA, then CPU.

    Of several processes on a machine, each takes the CUDA device of its ``local_rank``.

    Raises:
        InputError: if the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda":
        device = torch.device("cuda", local_rank) if device.index is None else device
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise InputError(f"trainer.device={name}: this machine has {count} CUDA devices; use cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise InputError(f"trainer.device={name}: this machine has no MPS device; use cpu or auto")
    return device


def prepare_torch(settings: TrainerSettings, seed: int) -> None:
    """Set number formats, determinism and every random stream."""
    torch.backends.cuda.matmul.allow_tf32 = settings.tf32
    torch.backends.cudnn.allow_tf32 = settings.tf32
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
