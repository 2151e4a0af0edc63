"""A self-test of two seconds: engines, solver and optimizer on this machine with the installed versions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gnewton.cubic import solve_cubic
from gnewton.doctor.installation import Finding, Level
from gnewton.optim.grouped_newton import GroupedNewton
from gnewton.partition import Partition
from gnewton.summary import Summarizer

AGREEMENT = 1e-9
"""Largest relative difference allowed between two exact summaries in float64."""

STEPS = 120


def selftest() -> Iterator[Finding]:
    """The engines agree, the solver certifies its solution, and training lowers the loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield engines()
        yield solver()
        yield training()


def engines() -> Finding:
    """The tangent engine agrees with the reference engine on a small network in float64."""
    model, inputs, targets = _problem(torch.float64)
    partition = Partition.per_tensor(model)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    fast, slow = (
        Summarizer(model, cross_entropy, partition, engine=engine).summarize(inputs, targets, direction)  # type: ignore[arg-type]
        for engine in ("tangent", "reference")
    )
    gap = max(
        float((a - b).norm() / b.norm())
        for a, b in (
            (fast.gradient, slow.gradient),
            (fast.hessian, slow.hessian),
            (fast.third, slow.third),
        )
        if a is not None and b is not None
    )
    return _finding("summary", f"engines agree to {gap:.0e}", passed=gap < AGREEMENT)


def solver() -> Finding:
    """The cubic solver certifies the global minimiser of an indefinite model."""
    random = np.random.default_rng(0)
    root = random.standard_normal((12, 12))
    hessian, gradient, third = root + root.T, random.standard_normal(12), random.standard_normal(12)
    solution = solve_cubic(hessian, gradient, third, 1.0)
    message = f"{solution.status}, residual {solution.residual:.0e}, margin {solution.curvature_margin:.2g}"
    return _finding("cubic solver", message, passed=solution.certified)


def training() -> Finding:
    """GroupedNewton lowers the loss in float32."""
    model, inputs, targets = _problem(torch.float32)
    optimizer = GroupedNewton(model, cross_entropy, period=5)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step(batch=(inputs, targets))
        losses.append(float(loss.detach()))
    message = f"GroupedNewton: loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps"
    return _finding("training", message, passed=losses[-1] < 0.8 * losses[0])


def _problem(dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network, and three classes separated by thresholds on the first two features."""
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 3))
    inputs = torch.randn(64, 6, dtype=dtype)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
    return model.to(dtype), inputs, targets


def _finding(subject: str, message: str, *, passed: bool) -> Finding:
    if passed:
        return Finding(Level.GOOD, subject, message)
    advice = "the results of this installation cannot be trusted; run the test suite"
    return Finding(Level.BROKEN, subject, f"{message}: {advice}")
