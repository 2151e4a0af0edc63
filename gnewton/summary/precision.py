"""The precision of products on CUDA, for the duration of a summary."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def exact_products(device: torch.device, tf32: bool) -> Iterator[None]:
    """Multiply in full float32 on CUDA, or with factors rounded to TF32 if ``tf32``; restored on leaving."""
    if device.type != "cuda":
        yield
        return
    precision = "tf32" if tf32 else "ieee"
    matmul: Any = torch.backends.cuda.matmul
    convolution: Any = getattr(torch.backends.cudnn, "conv")  # noqa: B009 - not annotated in torch
    before = matmul.fp32_precision, convolution.fp32_precision
    matmul.fp32_precision = convolution.fp32_precision = precision
    try:
        yield
    finally:
        matmul.fp32_precision, convolution.fp32_precision = before
