"""Evaluating a model without side effects, and under the kernels that derivatives need."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from gnewton.summary.problem import Problem


@contextlib.contextmanager
def without_side_effects(problem: Problem) -> Iterator[None]:
    """Restore random streams and the attributes of every module on leaving, however it is left.

    The streams are those of torch, of Python's ``random`` and of NumPy. Attributes (a counter, a cache, a
    stored activation) are restored by identity; a change inside a list or a dictionary remains. Attention
    uses differentiable kernels only, and gradients are enabled.
    """
    modules = list(_modules(problem))
    before = [dict(vars(module)) for module in modules]
    try:
        with preserve_random_streams(problem):
            yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            _restore(vars(module), attributes)


@contextlib.contextmanager
def preserve_random_streams(problem: Problem) -> Iterator[None]:
    """Restore the random streams of torch, Python and NumPy on leaving, without the attributes of modules."""
    stream = random.getstate()
    numpy = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    try:
        with preserve_torch_streams(problem.device()):
            yield
    finally:
        random.setstate(stream)
        if numpy is not None:
            numpy.random.set_state(legacy)


@contextlib.contextmanager
def preserve_torch_streams(device: torch.device) -> Iterator[None]:
    """Restore the random streams of torch on leaving, however it is left.

    Attention uses differentiable kernels only, gradients are enabled, and nothing is left for the backward
    pass to compute again.
    """
    on_cuda = device.type == "cuda"
    with (
        torch.random.fork_rng(devices=[device] if on_cuda else []),
        sdpa_kernel(SDPBackend.MATH),
        _without_checkpoints(),
        torch.enable_grad(),
    ):
        yield


class _AtOnce:
    """Stands in for torch's function that computes a part of a model again in the backward pass."""

    @staticmethod
    def apply(function: Callable[..., Any], preserve_rng_state: bool, *args: Any) -> Any:
        return function(*args)


@contextlib.contextmanager
def _without_checkpoints() -> Iterator[None]:
    """Compute reentrant checkpoints as ordinary parts of the model: they can be differentiated only once."""
    module: Any = checkpoint
    before = module.CheckpointFunction
    module.CheckpointFunction = _AtOnce
    try:
        yield
    finally:
        module.CheckpointFunction = before


@contextlib.contextmanager
def plain_kernels() -> Iterator[None]:
    """Use operations that have derivatives of every order, not the fused forward kernels of vendors."""
    backends = torch.backends
    before = backends.mha.get_fastpath_enabled(), backends.cudnn.enabled, torch._C._get_mkldnn_enabled()
    backends.mha.set_fastpath_enabled(False)
    torch._C._set_cudnn_enabled(False)
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        backends.mha.set_fastpath_enabled(before[0])
        torch._C._set_cudnn_enabled(before[1])
        torch._C._set_mkldnn_enabled(before[2])


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


def _restore(now: dict[str, object], before: dict[str, object]) -> None:
    if len(now) > len(before) or now.keys() != before.keys():
        for name in now.keys() - before.keys():
            del now[name]
    for name, value in before.items():
        if name not in now or now[name] is not value:
            now[name] = value


def _modules(problem: Problem) -> Iterator[nn.Module]:
    yield from problem.model.modules()
    if isinstance(problem.loss_fn, nn.Module):
        yield from problem.loss_fn.modules()
