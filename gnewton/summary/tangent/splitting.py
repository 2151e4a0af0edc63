"""The summary of a batch as a weighted sum over its parts, which bounds the memory of a pass."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.group_parts import sums_by_group
from gnewton.summary.problem import Problem, Request
from gnewton.summary.result import Summary
from gnewton.summary.tangent.passes import forward
from gnewton.summary.tangent.program import Program, Ref, TraceError, aten
from gnewton.summary.tangent.trace_cache import Trace, TraceCache

log = logging.getLogger(__name__)

PartSummary = Callable[[Trace, Request, Mapping[int, Tensor]], Summary]
"""(trace of the part, the part, its random draws) -> its summary."""


class Splitter:
    """Computes the summary of a batch part by part.

    This is exact where samples do not mix. The first time, loss and gradient of the parts are compared with
    those of the whole batch; the result is kept in the trace (``separable``).

    Args:
        problem: model, loss and partition.
        traces: the traces of the model.
        reduction: "mean" or "sum", how the loss joins the samples.
        summarize_part: the summary of one part.
    """

    def __init__(
        self, problem: Problem, traces: TraceCache, reduction: str, summarize_part: PartSummary
    ) -> None:
        self._problem = problem
        self._traces = traces
        self._reduction = reduction
        self._summarize_part = summarize_part
        self._level = logging.WARNING

    def summarize(
        self, whole: Trace, request: Request, parts: int, *, level: int = logging.WARNING
    ) -> Summary | None:
        """The summary as a sum over parts of the batch; None where the samples do not separate.

        Args:
            whole: the trace of the whole batch.
            request: the whole batch.
            parts: number of parts.
            level: of the line in the log where the batch stays whole.
        """
        self._level = level
        weighing, joinable = mean_weight(whole.program)
        if not joinable:
            self._keep_whole(whole, "a weighted mean is only a part of the loss")
            return None
        samples = request.divisible
        draws = self.draw(whole, request)
        total: dict[str, Tensor] = {}
        squares: list[tuple[Tensor | float, dict[str, Tensor]]] = []
        weights: Tensor | float = 0.0
        for start, stop in chunks(samples, parts):
            part = request.part(samples, start, stop)
            try:
                trace = self._traces.get(part)
            except TraceError:
                self._keep_whole(whole, "the model does not take parts of it")
                return None
            drawn = cut_draws(whole.program, trace.program, draws, samples, start, stop)
            if drawn is None:
                self._keep_whole(whole, "its random draws do not split")
                return None
            summary = self._summarize_part(trace, part, drawn)
            weight: Tensor | float = 1.0
            if self._reduction == "mean":
                weight = float(stop - start) if weighing is None else self._weight(trace, part)
            for name, entries in summary.parts().items():
                total[name] = total[name] + entries * weight if name in total else entries * weight
            squares.append((weight, summary.squares()))
            weights = weights + weight
        if self._reduction == "mean":
            total = {name: entries / weights for name, entries in total.items()}
        matrix = summary.matrix
        known = joined_squares(squares, weights if self._reduction == "mean" else 1.0)
        summary = replace(Summary.of(total), matrix=matrix, **known)
        if whole.separable is None:
            whole.separable = self._separates(whole, summary, request, draws)
            if not whole.separable:
                self._keep_whole(whole, "its samples mix (batch normalisation?)")
                return None
            log.info("summary: the batch of %d is worked through in %d parts", samples, parts)
        return summary

    def draw(self, trace: Trace, request: Request) -> dict[int, Tensor]:
        """The random draws of a batch, drawn once, in the order of the model."""
        steps = trace.plan.random_steps
        if not steps:
            return {}
        with torch.no_grad():
            values = forward(trace.program, self._problem.parameters(), self._problem.leaves(request))
        if not all(isinstance(values[i], Tensor) for i in steps):  # an operation with several values
            return {}
        return {i: values[i] for i in steps}

    def _keep_whole(self, whole: Trace, reason: str) -> None:
        whole.separable = False
        log.log(self._level, "summary: the batch cannot be split to save memory: %s", reason)

    def _weight(self, trace: Trace, part: Request) -> Tensor:
        """The sum of the weights in the mean of a part: labels may be ignored or weighted."""
        program = trace.program
        step_number, _ = mean_weight(program)
        assert step_number is not None
        step = program.steps[step_number]
        values: dict[int, Any] = dict(zip(program.inputs, self._problem.leaves(part), strict=True))
        target = values.get(step.args[1].step)
        weight = None if step.args[2] is None else values.get(step.args[2].step)
        if step.args[2] is not None and weight is None:
            weight = program.steps[step.args[2].step].constant
        if target is None:
            return torch.tensor(float(part.batch_size))
        counted = target != step.args[4]
        if weight is None:
            return counted.sum().double()
        return (weight[torch.where(counted, target, 0)] * counted).sum().double()

    def _separates(
        self, whole: Trace, summary: Summary, request: Request, draws: Mapping[int, Tensor]
    ) -> bool:
        """Whether loss and gradient of the whole batch equal those of the joined parts."""
        leaves = self._problem.copied_parameters()
        loss = forward(whole.program, leaves, self._problem.leaves(request), draws)[whole.program.loss]
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradient = torch.zeros_like(summary.gradient)
        size = torch.zeros_like(summary.gradient)
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                u = request.direction[name]
                groups, shares = sums_by_group(self._problem.partition, name, grad * u)
                gradient[list(groups)] += shares
                size[list(groups)] += (grad.norm() * u.norm()).double()
        tolerance = 1e-8 if loss.dtype == torch.float64 else 1e-4
        near = (gradient - summary.gradient).abs() <= tolerance * size + 1e-30
        return bool(near.all() & ((loss - summary.loss).abs() <= tolerance * loss.abs()))


def joined_squares(
    squares: Sequence[tuple[Tensor | float, Mapping[str, Tensor]]], weights: Tensor | float
) -> dict[str, Any]:
    """The sums of squares of a batch from those of its weighted parts; empty if one is unknown."""
    if not all(part for _, part in squares):
        return {}
    joined: dict[str, Any] = {}
    for weight, part in squares:
        for name, entries in part.items():
            factor = 1.0 if name == "samples" else (weight / weights) ** 2
            joined[name] = joined.get(name, 0.0) + entries * factor
    return joined


def chunks(samples: int, parts: int) -> list[tuple[int, int]]:
    """Ranges that split the samples into ``parts`` pieces whose lengths differ by at most one."""
    parts = max(1, min(samples, parts))
    base, longer = divmod(samples, parts)
    ranges, start = [], 0
    for k in range(parts):
        end = start + base + (k < longer)
        ranges.append((start, end))
        start = end
    return ranges


def cut_draws(
    whole: Program, part: Program, values: Mapping[int, Tensor], samples: int, lo: int, hi: int
) -> dict[int, Tensor] | None:
    """The random draws of the whole batch, cut to a part of it, by step of the program of that part.

    None where the draws of the two programs do not correspond.
    """
    steps = [i for i, step in enumerate(part.steps) if step.random and step.needed]
    if len(steps) != len(values):
        return None
    result = {}
    for i, value in zip(steps, values.values(), strict=True):
        shape = part.steps[i].shape
        if len(shape) != value.dim():
            return None
        for axis, (small, large) in enumerate(zip(shape, value.shape, strict=True)):
            if small == large:
                continue
            factor = large // samples
            if factor * samples != large or factor * (hi - lo) != small:
                return None
            value = value.narrow(axis, factor * lo, small)
        result[i] = value
    return result


def mean_weight(program: Program) -> tuple[int | None, bool]:
    """For a loss that is a mean of log-likelihoods, the step whose second value is the sum of their weights.

    The second result is whether the summaries of parts of a batch may be joined: not where such a weighted
    mean is only a part of the loss.
    """
    steps = program.steps
    i = program.loss
    while steps[i].op in (aten.view.default, aten.alias.default, aten.squeeze.default):
        i = steps[i].reads[0]
    last = steps[i].reads[0] if steps[i].output == 0 else i
    means = [
        j
        for j, step in enumerate(steps)
        if step.needed
        and step.op in (aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
        and step.args[3] == 1
    ]
    if means == [last]:
        return last, True
    return None, all(steps[j].args[2] is None and type(steps[j].args[1]) is Ref for j in means)
