"""The three passes of a program as one compiled function.

The passes depend on shapes alone, so they can themselves be traced into one graph, which TorchInductor
compiles. Every element-wise operation between two products is fused with its neighbours and with the sums
behind it, and Python has no part in a call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gnewton.backend import is_exhausted
from gnewton.errors import first_line
from gnewton.summary.tangent.accumulator import TOTALS
from gnewton.summary.tangent.passes import Arguments, Passes, run_passes
from gnewton.summary.tangent.plan import PassPlan
from gnewton.summary.tangent.program import TraceError

# the program's own convolutions: with channels last, small ones and their pooling take twice as long
OPTIONS: dict[str, Any] = {"layout_optimization": False}

# zeros that torch marks by a flag: a sum with them may return the memory of the other term
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {torch.ops.aten._efficientzerotensor.default: torch.zeros}


class CompiledPasses:
    """:func:`~gnewton.summary.tangent.passes.run_passes` for one plan, compiled at the first call.

    Compiled code draws no random numbers: the arguments must hold the value of every random step.

    Args:
        plan: the plan of the passes.

    Raises:
        TraceError: at the first call, if the passes cannot be traced or compiled.
    """

    def __init__(self, plan: PassPlan) -> None:
        self._plan = plan
        self._function: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, arguments: Arguments) -> Passes:
        """Run the passes."""
        tensors = [
            list(arguments.parameters.values()),
            [x for x in arguments.inputs if isinstance(x, Tensor)],
            [arguments.direction[name] for name in arguments.parameters],
            [arguments.draws[i] for i in sorted(arguments.draws)],
        ]
        if self._function is None:
            self._function, results = self._compile(arguments, tensors)
        else:
            with torch.no_grad():
                results = self._function(*itertools.chain(*tensors))
        *totals, loss, slope = results
        sums = self._plan.accumulator(loss.device)
        for name, total in zip(TOTALS, totals, strict=True):
            setattr(sums, name, total)
        return Passes(sums, loss, slope)

    def _compile(
        self, arguments: Arguments, tensors: Sequence[Sequence[Tensor]]
    ) -> tuple[Callable[..., Sequence[Tensor]], Sequence[Tensor]]:
        """The compiled function, and its results for these tensors."""
        if any(i not in arguments.draws for i in self._plan.random_steps):
            raise TraceError(
                "the passes cannot be compiled: one operation draws random numbers and works on them"
            )
        names, steps = list(arguments.parameters), sorted(arguments.draws)
        sizes = [len(part) for part in tensors]

        def passes(*flat: Tensor) -> list[Tensor]:
            values = iter(flat)
            parameters, x, direction, drawn = (list(itertools.islice(values, size)) for size in sizes)
            remaining = iter(x)
            traced = Arguments(
                dict(zip(names, parameters, strict=True)),
                # inputs that are no tensors are constants of the graph
                [next(remaining) if isinstance(old, Tensor) else old for old in arguments.inputs],
                dict(zip(names, direction, strict=True)),
                dict(zip(steps, drawn, strict=True)),
            )
            result = run_passes(self._plan, traced)
            return [*(getattr(result.sums, name) for name in TOTALS), result.loss, result.slope]

        flat = list(itertools.chain(*tensors))
        passes(*flat)  # once with numbers, in which rules compare two derivatives of an operation
        try:
            graph = make_fx(passes, DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)
            function: Any = torch.compile(graph, dynamic=False, options=OPTIONS)
            with torch.no_grad():
                return function, function(*flat)
        except Exception as error:  # of the tracer, the compiler, …: these have no common type
            if is_exhausted(error):
                raise
            reason = first_line(error, with_type=True)
            raise TraceError(f"the passes cannot be compiled: {reason}") from error
