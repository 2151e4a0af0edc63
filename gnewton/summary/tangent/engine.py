"""The tangent engine: traces, runs the passes, and splits batches to stay within its memory."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.backend import SMALL, is_exhausted, memory_limit, require_compiler
from gnewton.errors import OutOfMemory
from gnewton.summary.isolation import exact_products, preserve_random_streams, without_side_effects
from gnewton.summary.problem import Problem, Request
from gnewton.summary.result import SLOPE, Summary, SummaryError
from gnewton.summary.tangent import checks
from gnewton.summary.tangent.accumulator import TOTALS
from gnewton.summary.tangent.passes import Arguments, Passes, run_passes
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.splitting import Splitter
from gnewton.summary.tangent.trace_cache import Trace, TraceCache

log = logging.getLogger(__name__)

GRADIENTS = 4
"""Memory of the tangents in that of a gradient by the same operations, beyond which batches are split."""


class TangentEngine:
    """Summaries by stacked tangents.

    Args:
        problem: model, loss and partition.
        third: whether to form third derivatives.
        diagonal: whether to keep only the diagonal of the Hessian.
        max_memory: bytes for the tangents; None: a share of the free memory, or a few gradients.
        reduction: "mean" or "sum", how the loss joins the samples.
        tf32: whether CUDA may round the factors of products to TF32.
        compiled: whether to compile the passes of a program at its first summary.
        planner: plans the passes over a program; None: that of the full Hessian.

    Attributes:
        traces: the traces of the model, by kind of batch.

    Raises:
        InputError: if ``compiled`` is set and torch.compile does not work on this machine.
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
        planner: Callable[..., PassPlan] | None = None,
    ) -> None:
        if compiled:
            require_compiler(problem.device(), "engine=compiled", "engine=auto")
        self.problem = problem
        self.max_memory = max_memory
        self.tf32 = tf32
        self.traces = TraceCache(problem, third=third, diagonal=diagonal, compiled=compiled, planner=planner)
        self._splitter = Splitter(problem, self.traces, reduction, self._summarize_part)
        self._pending: tuple[Tensor, Any] | None = None

    def summarize(self, request: Request) -> Summary:
        """The summary of a batch.

        Raises:
            TraceError: if the model has no trace; the same error at every later call with this kind of batch.
            SummaryError: if the two gradients disagree.
            OutOfMemory: if the batch has been split as far as possible and still does not fit.
        """
        device = self.problem.device()
        self._report_pending()
        with (
            without_side_effects(self.problem),
            exact_products(device, self.tf32),
            torch.autocast(device.type, enabled=False),
        ):
            return self.traces.renewing(request, lambda: self._within_memory(request))

    def _within_memory(self, request: Request) -> Summary:
        """The summary, in as many parts of the batch as the memory requires."""
        whole = self.traces.get(request)
        samples = request.divisible
        size = self._bytes(whole, request)
        parts = min(max(math.ceil(size / self._allowed(whole, size)), whole.parts), samples)
        while (summary := self._attempt(whole, request, parts)) is None:
            whole.parts = parts = self._more_parts(whole, samples, parts)
        return summary

    def _bytes(self, whole: Trace, request: Request) -> int:
        """The memory that the summary of a whole batch takes beyond a training step."""
        return whole.bytes

    def _allowed(self, whole: Trace, size: int) -> int:
        """The bytes that the summary of a batch may take, of the ``size`` that it takes as a whole.

        Without ``max_memory`` they are a few times those of a gradient, whatever memory is free.
        """
        allowed = memory_limit(size, self.max_memory, self.problem.device())
        if self.max_memory is None:
            allowed = min(allowed, max(SMALL, GRADIENTS * whole.plan.gradient_bytes))
        return max(allowed, 1)

    def _must_split(self, whole: Trace) -> bool:
        """Whether a batch is split because memory demands it, not only to be modest."""
        return whole.parts > 1 or whole.bytes > memory_limit(
            whole.bytes, self.max_memory, self.problem.device()
        )

    def _attempt(self, whole: Trace, request: Request, parts: int) -> Summary | None:
        """The summary of the batch in ``parts``; None if memory is exhausted.

        On return the exception is gone, and with it the tensors of its frames.
        """
        try:
            with preserve_random_streams(self.problem):  # the next attempt draws the same numbers
                summary = None
                if parts > 1 and whole.separable is not False:
                    level = logging.WARNING if self._must_split(whole) else logging.INFO
                    summary = self._splitter.summarize(whole, request, parts, level=level)
                return self._summarize_whole(whole, request) if summary is None else summary
        except (RuntimeError, MemoryError) as error:
            if not is_exhausted(error):
                raise
        return None

    def _more_parts(self, whole: Trace, samples: int, parts: int) -> int:
        """Twice as many parts, with one line in the log."""
        device = self.problem.device()
        if whole.separable is False or parts >= samples:
            raise OutOfMemory(
                f"summary: out of memory on {device} with a batch of {samples} samples, "
                f"{'which cannot be split' if whole.separable is False else 'taken one by one'}; "
                "lower the size of the curvature batch (optimizer.curvature.batch_size)"
            )
        if device.type == "cuda":
            torch.cuda.empty_cache()
        more = min(2 * parts, samples)
        log.warning(
            "summary: out of memory; from here on batches of %d are split into %d parts", samples, more
        )
        return more

    def _summarize_whole(self, trace: Trace, request: Request) -> Summary:
        """The summary of a whole batch; its two gradients are compared, on CUDA at the next call."""
        passes = self._passes(trace, request)
        dtype = next(iter(request.direction.values())).dtype
        bad = checks.disagreement(passes, dtype)[trace.plan.positions]
        self._pending = bad, self.traces.kind(request)
        if self.problem.device().type == "cpu":
            self._report_pending()
        return self._summary(trace, passes)

    def _summarize_part(self, trace: Trace, part: Request, draws: Mapping[int, Tensor]) -> Summary:
        """The summary of a part of a batch."""
        return self._summary(trace, self._passes(trace, part, draws))

    def _passes(self, trace: Trace, request: Request, draws: Mapping[int, Tensor] | None = None) -> Passes:
        """Run the passes of a trace and compare it with the model; draws are made where none are passed."""
        parameters, inputs = self.problem.parameters(), self.problem.leaves(request)
        if trace.compiled is not None:
            draws = self._splitter.draw(trace, request) if draws is None else draws
            values = [draws.get(i) for i in range(len(trace.program.steps))]
            self.traces.confirm(trace, request, parameters, values, blank=True)
            return trace.compiled(Arguments(parameters, inputs, request.direction, draws))

        def confirm(leaves: Mapping[str, Tensor], values: Sequence[Any]) -> None:
            self.traces.confirm(trace, request, leaves, values)

        return run_passes(trace.plan, Arguments(parameters, inputs, request.direction, draws or {}), confirm)

    def _summary(self, trace: Trace, passes: Passes) -> Summary:
        """The sums in the partition's order of groups.

        The noise of the gradient includes the difference between its two estimates. This shows the effect of
        rounding where the adjoint cancels before it reaches the parameters.
        """
        sums, plan = passes.sums, trace.plan
        positions = plan.positions
        totals = {name: getattr(sums, name) for name in TOTALS if plan.third or not name.startswith("third")}
        totals["gradient_noise"] = sums.gradient_noise + SLOPE * (sums.gradient - passes.slope).abs()
        matrices = () if plan.diagonal else ("hessian", "hessian_noise")
        if positions != list(range(len(positions))):
            index = torch.tensor(positions, device=sums.device)
            totals = {name: total[index] for name, total in totals.items()}
            for name in matrices:
                totals[name] = totals[name][:, index]
        for name in matrices:
            totals[name] = (totals[name] + totals[name].T) / 2
        return Summary.of({**totals, "loss": passes.loss})

    def _report_pending(self) -> None:
        """Read the check of the last summary: at once on a CPU, one call later where reading would wait."""
        pending, self._pending = self._pending, None
        if pending is not None:
            bad, kind = pending
            try:
                checks.report_disagreement(bad, self.problem.partition.names)
            except SummaryError as error:
                self.traces.refuse(kind, str(error))
                raise
