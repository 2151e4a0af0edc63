"""The Gauss–Newton matrix by tangents of the outputs and the Hessian of the loss there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from gnewton.errors import InputError
from gnewton.summary.cut import CutProblem
from gnewton.summary.output_reference import FLAT, check_convex
from gnewton.summary.problem import Request
from gnewton.summary.result import Summary
from gnewton.summary.tangent.cut_plan import make_cut_plan, model_part
from gnewton.summary.tangent.engine import TangentEngine
from gnewton.summary.tangent.trace_cache import Trace


class OutputTangents(TangentEngine):
    """Gauss–Newton matrices by stacked tangents, for every model and loss, coupled samples included.

    The passes are those of the tangent engine. The steps of the model contribute nothing, so neither their
    adjoints nor second-order tangents are formed.

    Args:
        problem: model, loss and partition.
        diagonal: whether to keep only the diagonal of the matrix.
        max_memory, reduction, tf32: as in :class:`TangentEngine`.
    """

    def __init__(
        self, problem: CutProblem, *, diagonal: bool, max_memory: int | None, reduction: str, tf32: bool
    ) -> None:
        super().__init__(
            problem,
            third=False,
            diagonal=diagonal,
            max_memory=max_memory,
            reduction=reduction,
            tf32=tf32,
            planner=make_cut_plan,
        )

    def _summarize_whole(self, trace: Trace, request: Request) -> Summary:
        return self._checked(trace, super()._summarize_whole(trace, request))

    def _summarize_part(self, trace: Trace, part: Request, draws: Mapping[int, Tensor]) -> Summary:
        return self._checked(trace, super()._summarize_part(trace, part, draws))

    def _checked(self, trace: Trace, summary: Summary) -> Summary:
        """The summary, once it is known that there is a Gauss–Newton matrix.

        Raises:
            InputError: if the loss is linear in the outputs, or not convex in them.
        """
        program = trace.program
        if program.loss in model_part(program) or not trace.plan.adjoints:
            raise InputError(FLAT)
        check_convex(summary.hessian)
        return replace(summary, matrix="gauss_newton")
