"""The tangent engine as an object that splits batches to stay within its memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton.compilation import require_compiler
from gnewton.errors import OutOfMemory
from gnewton.summary import checks, memory
from gnewton.summary.accumulate import TOTALS
from gnewton.summary.batch import batch_size, divisible
from gnewton.summary.engine import Passes, forward, run
from gnewton.summary.graph import TraceError
from gnewton.summary.precision import exact_products
from gnewton.summary.problem import Problem
from gnewton.summary.result import Summary, SummaryError
from gnewton.summary.rounding import SLOPE
from gnewton.summary.stacks import Stacks
from gnewton.summary.traces import StaleTrace, Trace, Traces
from gnewton.summary.undisturbed import restored_streams, undisturbed

log = logging.getLogger(__name__)

RENEWALS = 8  # of traces in one summary: of the whole batch, and of its parts


class TangentEngine:
    """Summaries by stacked tangents, batch after batch.

    Args:
        problem: model, loss and partition.
        third: whether to form third derivatives.
        diagonal: whether to keep only the diagonal of the Hessian.
        max_memory: bytes for the tangents; None: a share of the free memory when a trace is made.
        reduction: "mean" or "sum".
        tf32: whether CUDA may round the factors of products to TF32.
        compiled: whether to compile the passes of a program, at its first summary.

    Raises:
        InputError: if they are to be compiled and the machine lacks what that takes.
    """

    def __init__(
        self,
        problem: Problem,
        *,
        third: bool,
        diagonal: bool,
        max_memory: int | None,
        reduction: str,
        tf32: bool,
        compiled: bool = False,
    ) -> None:
        if compiled:
            require_compiler(problem.device(), "engine=compiled", "engine=auto")
        self.problem = problem
        self.third = third
        self.diagonal = diagonal
        self.max_memory = max_memory
        self.reduction = reduction
        self.tf32 = tf32
        self.traces = Traces(problem, third=third, diagonal=diagonal, compiled=compiled)
        self._stacks = Stacks()
        self._pending: tuple[Tensor, Any] | None = None

    def summarize(self, inputs: Any, targets: Any, direction: Mapping[str, Tensor]) -> Summary:
        """The summary of a batch.

        Raises:
            TraceError: if the model has no trace; the same error at every later call of this kind.
            SummaryError: if the result contradicts itself, or the trace no longer is that of the model.
            OutOfMemory: if the batch is split as far as it can be, and still does not fit.
        """
        device = self.problem.device()
        self._settle()
        with (
            undisturbed(self.problem),
            exact_products(device, self.tf32),
            torch.autocast(device.type, enabled=False),
        ):
            for renewal in range(RENEWALS):
                summary = self._current(inputs, targets, direction)
                if summary is not None:
                    if renewal == 0:
                        self.traces.settled(inputs, targets)
                    return summary
        raise TraceError("the loss is another one at every call")

    def _current(self, inputs: Any, targets: Any, direction: Mapping[str, Tensor]) -> Summary | None:
        """The summary; None if a trace no longer held and has been replaced."""
        try:
            return self._fitting(inputs, targets, direction)
        except StaleTrace as stale:
            self.traces.renew(stale)
        return None

    def _fitting(self, inputs: Any, targets: Any, direction: Mapping[str, Tensor]) -> Summary:
        """The summary, by as many parts of the batch as the memory asks for."""
        device = self.problem.device()
        whole = self.traces.get(inputs, targets)
        samples = divisible(inputs, targets)
        parts = min(max(self._parts(whole, device), whole.parts), samples)
        while (made := self._attempt(whole, inputs, targets, direction, parts)) is None:
            whole.parts = parts = self._more_parts(whole, samples, parts, device)
        return made

    def _parts(self, whole: Trace, device: torch.device) -> int:
        """Parts of a batch that should fit, by what its tangents take."""
        limit = self.max_memory
        if limit is None:
            limit = int(memory.SHARE * memory.free_memory(device)) if whole.bytes > 1 << 28 else whole.bytes
        return math.ceil(whole.bytes / max(limit, 1))

    def _attempt(
        self, whole: Trace, inputs: Any, targets: Any, direction: Mapping[str, Tensor], parts: int
    ) -> Summary | None:
        """The summary, the batch worked through in ``parts``; None if the memory does not do.

        By the time it returns, the exception is gone, and with it what its frames held.
        """
        try:
            with restored_streams(self.problem):  # so that the next attempt draws the same
                return self._compute(whole, inputs, targets, direction, parts)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_exhausted(error):
                raise
        return None

    def _more_parts(self, whole: Trace, samples: int, parts: int, device: torch.device) -> int:
        """Twice as many parts, with one line in the log."""
        if whole.separable is False or parts >= samples:
            raise OutOfMemory(
                f"summary: out of memory on {device} with a batch of {samples} samples, "
                f"{'which cannot be split' if whole.separable is False else 'taken one by one'}; "
                "lower the size of the curvature batch (optimizer.curvature.batch_size)"
            )
        self._stacks.release()  # the pieces that are kept suit the whole batch's tensors
        if device.type == "cuda":
            torch.cuda.empty_cache()
        more = min(2 * parts, samples)
        log.warning(
            "summary: out of memory; from here on batches of %d are split into %d parts", samples, more
        )
        return more

    def _compute(
        self, whole: Trace, inputs: Any, targets: Any, direction: Mapping[str, Tensor], parts: int
    ) -> Summary:
        if parts > 1 and whole.separable is not False:
            made = self._split(whole, inputs, targets, direction, divisible(inputs, targets), parts)
            if made is not None:
                return made
        passes = self._run(whole, inputs, targets, direction)
        bad = checks.disagreement(passes, next(iter(direction.values())).dtype)[self._inverse(whole)]
        self._pending = bad, self.traces.kind(inputs, targets)
        if self.problem.device().type == "cpu":
            self._settle()
        return self._summary(whole, passes)

    def _run(
        self, made: Trace, inputs: Any, targets: Any, direction: Mapping[str, Tensor], draws: Any = None
    ) -> Passes:
        parameters = self.problem.parameters()
        leaves = pytree.tree_leaves((self.problem.constants(), inputs, targets))

        def confirm(on: Mapping[str, Tensor], values: Sequence[Any]) -> None:
            self.traces.confirm(made, inputs, targets, on, values)

        if made.compiled is not None:
            drawn = self._draw(made, inputs, targets) if draws is None else draws
            values = [drawn.get(i) for i in range(len(made.program.steps))]
            self.traces.confirm(made, inputs, targets, parameters, values, blank=True)
            return made.compiled(parameters, leaves, direction, drawn)
        return run(
            made.program,
            made.plan,
            parameters,
            leaves,
            direction,
            third=self.third,
            diagonal=self.diagonal,
            draws=draws,
            stacks=self._stacks,
            confirm=confirm,
        )

    # --- parts of a batch -----------------------------------------------------------------------------------

    def _split(
        self,
        whole: Trace,
        inputs: Any,
        targets: Any,
        direction: Mapping[str, Tensor],
        samples: int,
        parts: int,
    ) -> Summary | None:
        """The summary as a sum over parts of the batch; None where the samples do not separate."""
        weighing, joinable = memory.mean_weight(whole.program)
        if not joinable:
            self._keep_whole(whole, "a weighted mean is only a part of the loss")
            return None
        draws = self._draw(whole, inputs, targets)
        total: dict[str, Tensor] = {}
        weights: Tensor | float = 0.0
        for lo, hi in memory.chunks(samples, parts):
            x, y = memory.cut((inputs, targets), samples, lo, hi)
            try:
                part = self.traces.get(x, y)
            except TraceError:
                self._keep_whole(whole, "the model does not take parts of it")
                return None
            drawn = memory.cut_draws(whole.program, part.program, draws, samples, lo, hi)
            if drawn is None:
                self._keep_whole(whole, "its random draws do not split")
                return None
            passes = self._run(part, x, y, direction, drawn)
            weight: Tensor | float = 1.0
            if self.reduction == "mean":
                weight = float(hi - lo) if weighing is None else self._weight(part, x, y)
            for name, number in self._summary(part, passes).parts().items():
                total[name] = total[name] + number * weight if name in total else number * weight
            weights = weights + weight
        if self.reduction == "mean":
            total = {name: number / weights for name, number in total.items()}
        summary = Summary.of(total)
        if whole.separable is None:
            whole.separable = self._separates(whole, summary, inputs, targets, direction, draws)
            if not whole.separable:
                self._keep_whole(whole, "its samples mix (batch normalisation?)")
                return None
            log.info("summary: the batch of %d is worked through in %d parts", samples, parts)
        return summary

    def _keep_whole(self, whole: Trace, reason: str) -> None:
        whole.separable = False
        log.warning("summary: the batch cannot be split to save memory: %s", reason)

    def _weight(self, part: Trace, inputs: Any, targets: Any) -> Tensor:
        """Sum of the weights of a part's mean: labels that are ignored or weighted do not count alike."""
        step_number, _ = memory.mean_weight(part.program)
        assert step_number is not None
        step = part.program.steps[step_number]
        leaves = pytree.tree_leaves((self.problem.constants(), inputs, targets))
        values: dict[int, Any] = dict(zip(part.program.inputs, leaves, strict=True))
        target = values.get(step.args[1].step)
        weight = None if step.args[2] is None else values.get(step.args[2].step)
        if step.args[2] is not None and weight is None:
            weight = part.program.steps[step.args[2].step].constant
        if target is None:
            return torch.tensor(float(batch_size(inputs, targets)))
        counted = target != step.args[4]
        if weight is None:
            return counted.sum().double()
        return (weight[torch.where(counted, target, 0)] * counted).sum().double()

    def _draw(self, whole: Trace, inputs: Any, targets: Any) -> dict[int, Tensor]:
        """The random draws of the whole batch, made once, in the model's order."""
        steps = [i for i, step in enumerate(whole.program.steps) if step.random and step.needed]
        if not steps:
            return {}
        leaves = pytree.tree_leaves((self.problem.constants(), inputs, targets))
        with torch.no_grad():
            values = forward(whole.program, self.problem.parameters(), leaves)
        if not all(isinstance(values[i], Tensor) for i in steps):  # one gave several
            return {}
        return {i: values[i] for i in steps}

    def _separates(
        self,
        whole: Trace,
        summary: Summary,
        inputs: Any,
        targets: Any,
        direction: Mapping[str, Tensor],
        draws: Mapping[int, Tensor],
    ) -> bool:
        """Whether loss and gradient of the whole batch are those of the joined parts."""
        leaves = {name: p.requires_grad_() for name, p in self.problem.parameters().items()}
        flat = pytree.tree_leaves((self.problem.constants(), inputs, targets))
        loss = forward(whole.program, leaves, flat, draws)[whole.program.loss]
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradient = torch.zeros_like(summary.gradient)
        size = torch.zeros_like(summary.gradient)
        for name, grad in zip(leaves, grads, strict=True):
            if grad is not None:
                s = self.problem.partition.index[name]
                gradient[s] += (grad * direction[name]).sum()
                size[s] += grad.norm() * direction[name].norm()
        tolerance = 1e-8 if loss.dtype == torch.float64 else 1e-4
        near = (gradient - summary.gradient).abs() <= tolerance * size + 1e-30
        return bool(near.all() & ((loss - summary.loss).abs() <= tolerance * loss.abs()))

    # --- results --------------------------------------------------------------------------------------------

    def _inverse(self, made: Trace) -> list[int]:
        rank = {s: position for position, s in enumerate(made.plan.order)}
        return [rank[s] for s in range(len(rank))]

    def _summary(self, made: Trace, passes: Passes) -> Summary:
        """The sums in the partition's order of groups.

        To the rounding errors of the products that made up the gradient comes the difference between its two
        estimates: it also shows what these errors become where the adjoint cancels on its way.
        """
        sums, at = passes.sums, self._inverse(made)
        totals = {name: getattr(sums, name) for name in TOTALS if self.third or not name.startswith("third")}
        totals["gradient_noise"] = sums.gradient_noise + SLOPE * (sums.gradient - passes.slope).abs()
        matrices = () if self.diagonal else ("hessian", "hessian_noise")
        if at != list(range(len(at))):
            index = torch.tensor(at, device=sums.device)
            totals = {name: total[index] for name, total in totals.items()}
            for name in matrices:
                totals[name] = totals[name][:, index]
        for name in matrices:
            totals[name] = (totals[name] + totals[name].T) / 2
        return Summary.of({**totals, "loss": passes.loss})

    def _settle(self) -> None:
        """Read the check of the last summary: at once on a CPU, one call later where reading would wait."""
        pending, self._pending = self._pending, None
        if pending is not None:
            bad, kind = pending
            try:
                checks.report_disagreement(bad, self.problem.partition.names)
            except SummaryError as error:
                self.traces.refuse(kind, str(error))
                raise
