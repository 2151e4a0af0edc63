"""The three passes of a program as one compiled function.

The engine's passes look at shapes alone, so that they can themselves be traced: what they do with numbers
becomes one graph, which TorchInductor compiles. Every element-wise operation between two products is fused
with its neighbours and with the sums behind it, and Python has no part in a call.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from gnewton.errors import first_line
from gnewton.summary.accumulate import TOTALS, Accumulator
from gnewton.summary.engine import Passes, Plan, run
from gnewton.summary.graph import Program, TraceError
from gnewton.summary.memory import is_exhausted
from gnewton.summary.rounding import Rounding
from gnewton.summary.stacks import Stacks

# convolutions as the program has them: with channels last, small ones and their pooling take twice as long
OPTIONS: dict[str, Any] = {"layout_optimization": False}

# zeros that are told by a flag: what a sum with them returns may then share the memory of the other term
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {torch.ops.aten._efficientzerotensor.default: torch.zeros}


class CompiledPasses:
    """:func:`gnewton.summary.engine.run` for one program and plan, compiled at the first call.

    Args:
        program, plan, third, diagonal: as there.

    Raises:
        TraceError: at the first call, if the passes cannot be traced or compiled.
    """

    def __init__(self, program: Program, plan: Plan, *, third: bool, diagonal: bool) -> None:
        self._program = program
        self._plan = plan
        self._third = third
        self._diagonal = diagonal
        self._function: Callable[..., Sequence[Tensor]] | None = None

    def __call__(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Sequence[Any],
        direction: Mapping[str, Tensor],
        draws: Mapping[int, Tensor],
    ) -> Passes:
        """Make the passes.

        Args:
            parameters, inputs, direction: as in :func:`gnewton.summary.engine.run`.
            draws: the value of every random step: compiled code draws none.
        """
        tensors = [
            list(parameters.values()),
            [x for x in inputs if isinstance(x, Tensor)],
            [direction[name] for name in parameters],
            [draws[i] for i in sorted(draws)],
        ]
        if self._function is None:
            self._function, numbers = self._compile(parameters, inputs, draws, tensors)
        else:
            with torch.no_grad():
                numbers = self._function(*itertools.chain(*tensors))
        *totals, loss, slope = numbers
        sums = Accumulator(
            len(self._plan.order),
            loss.device,
            diagonal=self._diagonal,
            third=self._third,
            rounding=Rounding.of(self._plan.dtypes, loss.device),
        )
        for name, total in zip(TOTALS, totals, strict=True):
            setattr(sums, name, total)
        return Passes(sums, loss, slope)

    def _compile(
        self,
        parameters: Mapping[str, Tensor],
        inputs: Sequence[Any],
        draws: Mapping[int, Tensor],
        tensors: Sequence[Sequence[Tensor]],
    ) -> tuple[Callable[..., Sequence[Tensor]], Sequence[Tensor]]:
        """The compiled function, and what it gave for these tensors."""
        if any(s.random and s.needed and i not in draws for i, s in enumerate(self._program.steps)):
            raise TraceError(
                "the passes cannot be compiled: one operation draws random numbers and works on them"
            )
        names, steps = list(parameters), sorted(draws)
        sizes = [len(part) for part in tensors]

        def passes(*flat: Tensor) -> list[Tensor]:
            values = iter(flat)
            p, x, u, drawn = (list(itertools.islice(values, size)) for size in sizes)
            given = iter(x)
            made = run(
                self._program,
                self._plan,
                dict(zip(names, p, strict=True)),
                [next(given) if isinstance(old, Tensor) else old for old in inputs],  # others are fixed
                dict(zip(names, u, strict=True)),
                draws=dict(zip(steps, drawn, strict=True)),
                third=self._third,
                diagonal=self._diagonal,
                stacks=Stacks(),  # holds nothing: compiled code finds its own memory
            )
            return [*(getattr(made.sums, name) for name in TOTALS), made.loss, made.slope]

        flat = list(itertools.chain(*tensors))
        passes(*flat)  # once on numbers: rules that find something out about an operation do so now
        try:
            graph = make_fx(passes, DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)
            function: Any = torch.compile(graph, dynamic=False, options=OPTIONS)
            with torch.no_grad():
                return function, function(*flat)
        except Exception as error:  # of the tracer, the compiler, …: of no common kind
            if is_exhausted(error):
                raise
            raise TraceError(f"the passes cannot be compiled: {first_line(error, with_type=True)}") from error
