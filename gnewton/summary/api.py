"""Where a summary is requested: :func:`summarize`, or :class:`Summarizer`, which keeps its traces.

With engine="auto" the traced engine is asked, and the reference engine takes over where that fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from gnewton.arguments import check_flag, check_name, check_number, check_whole, explained
from gnewton.backend import is_exhausted, mean_over_processes, sum_over_processes, world_size
from gnewton.errors import GnewtonError, InputError, OutOfMemory, first_line
from gnewton.partition import PartitionChoice, chosen_partition
from gnewton.summary.batch import hidden
from gnewton.summary.cut import MATRICES, CutProblem, reference_gauss_newton
from gnewton.summary.group_parts import check_carried
from gnewton.summary.problem import Direction, Forward, LossFunction, Problem, Request
from gnewton.summary.reference import reference_summary, reference_tensor
from gnewton.summary.result import MOST_SQUARED, Summary
from gnewton.summary.tangent.checks import eager_loss
from gnewton.summary.tangent.engine import TangentEngine
from gnewton.summary.tangent.output_engine import OutputEngine
from gnewton.summary.tangent.program import TraceError

log = logging.getLogger(__name__)

T = TypeVar("T")

EngineName = Literal["auto", "tangent", "compiled", "reference"]
ENGINES = ("auto", "tangent", "compiled", "reference")
REDUCTIONS = ("mean", "sum")
_LOSS = "pass the function of (outputs, targets), such as torch.nn.functional.cross_entropy"


class Summarizer:
    """Summaries of one model, loss and partition, batch after batch.

    Args:
        model: the network, possibly inside ``torch.compile`` or DistributedDataParallel. It is called as
            ``model(*inputs)`` for a tuple or list of inputs, as ``model(**inputs)`` for a mapping, else as
            ``model(inputs)``, with an empty tensor where there is no data.
        loss_fn: maps (outputs, targets) to the scalar loss of the batch.
        partition: S groups of the trainable parameters, or an argument of
            :func:`~gnewton.partition.chosen_partition`.
        forward: for models that are called in another way, ``forward(model, batch)`` returns the outputs and
            ``loss_fn(outputs, batch)`` the loss. The batch is (inputs, targets), or ``inputs`` alone where
            ``targets`` is None.
        curvature: the matrix in ``Summary.hessian``. "hessian" is that of the loss. "gauss_newton" is
            Uᵀ Jᵀ Λ J U with J the Jacobian of the model's outputs, Λ the Hessian of the loss in them and U
            the columns P_s u: positive semi-definite, for losses that are convex in the outputs. "fisher"
            is an unbiased estimate of the Fisher matrix from labels drawn from the model's own likelihood.
        draws: labels drawn for each sample, M >= 1.
        third: whether to form the third derivatives; None: with curvature="hessian" alone. With another
            matrix they take passes of their own.
        engine: "tangent" is exact at the cost of a few gradients and raises where it cannot trace the
            model; "compiled" runs the same passes in compiled code, up to twice as fast, after seconds to
            minutes of compilation for each shape; "reference" is exact for every model at the cost of 2S
            backward passes; "auto" uses "tangent" where it works, else "reference" with a line in the log.
        diagonal: whether to keep only the diagonal of the Hessian, shape (S,).
        max_memory: bytes for the tangents, beyond a training step; larger batches are split along samples,
            where that is exact. None: half of the free memory, and at most a few times the memory of a
            gradient (256 MiB or more).
        reduction: "mean" or "sum", how the loss joins the samples.
        tf32: whether CUDA may round the factors of matrix products and convolutions to TF32.
        distributed: whether to join the summaries of all processes of ``torch.distributed``, each of its own
            samples, to the summary of the global batch; without effect where it is not initialised.

    Raises:
        InputError: for an unknown engine or reduction, if model and partition disagree, or for "compiled"
            where torch.compile does not work on this machine.
    """

    @explained(loss_fn=_LOSS)
    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        partition: PartitionChoice,
        *,
        forward: Forward | None = None,
        curvature: str = "hessian",
        draws: int = 1,
        third: bool | None = None,
        engine: EngineName = "auto",
        diagonal: bool = False,
        max_memory: int | None = None,
        reduction: str = "mean",
        tf32: bool = False,
        distributed: bool = True,
    ) -> None:
        check_name("summary: engine", engine, ENGINES)
        check_name("summary: reduction", reduction, REDUCTIONS)
        check_name("summary: curvature", curvature, MATRICES)
        if curvature != "hessian" and engine == "compiled":
            raise InputError(
                f"summary: engine=compiled: curvature={curvature} is not compiled; use engine=auto"
            )
        check_whole("summary: draws", draws, 1)
        third = curvature == "hessian" if third is None else third
        if max_memory is not None:
            check_number("summary: max_memory", max_memory, above=0)
        flags = {"third": third, "diagonal": diagonal, "tf32": tf32, "distributed": distributed}
        for name, flag in flags.items():
            check_flag(f"summary: {name}", flag)
        kind = Problem if curvature == "hessian" else CutProblem
        self.problem = kind(model, loss_fn, chosen_partition(model, partition), forward)
        if curvature == "hessian" and engine != "reference":
            check_carried(self.problem.partition, "the Hessian or third derivatives")
        if engine == "compiled" and self.problem.partition.sliced:
            raise InputError(
                "summary: engine=compiled: groups that are slices are not compiled; use engine=auto"
            )
        self.curvature = curvature
        self.third = third
        self.engine = engine
        self.diagonal = diagonal
        self.reduction = reduction
        self.distributed = distributed
        limits: dict[str, Any] = {
            "diagonal": diagonal, "max_memory": max_memory, "reduction": reduction, "tf32": tf32,
        }  # fmt: skip
        self.tangent_engine: TangentEngine
        self._cubes: Summarizer | None = None
        if isinstance(self.problem, CutProblem):
            self.tangent_engine = OutputEngine(self.problem, matrix=curvature, draws=draws, **limits)
            if third:
                limits |= {"diagonal": True, "forward": forward, "engine": engine, "distributed": False}
                self._cubes = Summarizer(model, loss_fn, self.problem.partition, **limits)
        else:
            compiled = engine == "compiled"
            self.tangent_engine = TangentEngine(self.problem, third=third, compiled=compiled, **limits)
        self._takeover = Takeover("summary", engine)

    def summarize(
        self,
        inputs: Any,
        targets: Any,
        direction: Direction,
        generator: torch.Generator | None = None,
    ) -> Summary:
        """The summary of the batch loss along ``direction``, at the current parameters.

        There are no side effects: parameters, ``.grad``, buffers, random streams and the training mode are
        the same afterwards, even after an exception. Random draws such as dropout masks are drawn once.

        Args:
            inputs: the inputs of the model: a nest of tuples, lists, mappings and dataclasses.
            targets: the targets of the loss.
            direction: u in the shapes of the parameters, by parameter name or in the order of the model's
                trainable parameters.
            generator: draws the labels of the Fisher matrix, on the model's device; None: the same ones at
                every call.

        Raises:
            InputError: if the direction lacks a parameter or has a wrong shape, or the loss is not a scalar.
            SummaryError: with engine="tangent" or "compiled", if the model cannot be traced (or compiled).
        """
        request = self.problem.request(inputs, targets, direction)
        if isinstance(self.tangent_engine, OutputEngine):
            self.tangent_engine.generator = generator
        summary = self._local(request)
        if self._cubes is not None:
            cubic = self._cubes.summarize(inputs, targets, direction)
            summary = replace(summary, third=cubic.third, third_noise=cubic.third_noise)
        if self.distributed and world_size() > 1:
            summary = self._over_processes(summary, request.batch_size)
        return replace(summary, names=self.problem.partition.names)

    def _local(self, request: Request) -> Summary:
        """The summary of this process's samples.

        With engine="auto", the reference engine takes over after any failure of the tangent engine: a model
        that cannot be traced, an operation without derivatives, two gradients that disagree. It does so for
        all later batches of this kind, unless it fails too, in which case the error is the model's.
        """
        if self.engine == "reference":
            return self._by_reference(request)
        summary, reason = self._takeover.attempt(request, lambda: self.tangent_engine.summarize(request))
        if summary is not None:
            return summary
        traces = self.tangent_engine.traces
        kind = traces.kind(request)
        if not traces.is_refused(kind):
            traces.refuse(kind, reason)
        try:
            return self._by_reference(request)
        except Exception:
            traces.refuse(kind, "")
            raise

    def _over_processes(self, summary: Summary, samples: int) -> Summary:
        """The summary of the global batch, by one all-reduce of at most 2S² + 4S + 2 numbers.

        Exact where the global loss is the mean (or sum) of the samples' losses and the direction is the same
        in every process. A mean is weighted by ``samples``, the size of this process's part. Where samples
        mix within a part (batch normalisation in training mode), the result is that of the mean of the parts'
        losses. The noise of an entry is joined like the entry.
        """
        mean = self.reduction == "mean"
        if summary.matrix != "hessian":
            return self._squares_too(summary, samples if mean else 1)
        parts = summary.parts()
        entries = list(parts.values())
        entries = mean_over_processes(entries, samples) if mean else sum_over_processes(entries)
        return Summary.of(dict(zip(parts, entries, strict=True)))

    def _squares_too(self, summary: Summary, weight: float) -> Summary:
        """The summary of the global batch with its sums of squares, where every process knows its own."""
        parts, squares = summary.parts(), summary.squares()
        size = len(summary)
        known = squares or {
            "samples": summary.loss.new_zeros(()),
            "gradient_squares": summary.loss.new_zeros(size, size),
            "hessian_squares": torch.zeros_like(summary.hessian),
        }
        if size > MOST_SQUARED:
            known.pop("hessian_squares", None)
        factors = [1.0 if name == "samples" else weight**2 for name in known]
        counts = summary.loss.new_tensor([weight, float(bool(squares))])
        sent = [entries * weight for entries in parts.values()]
        sent += [entries * factor for entries, factor in zip(known.values(), factors, strict=True)]
        *sums, (total, knowing) = sum_over_processes([*sent, counts])
        total = total if self.reduction == "mean" else torch.ones_like(total)
        joined = Summary.of({name: x / total for name, x in zip(parts, sums, strict=False)})
        rest: dict[str, Any] = {}
        if int(knowing) == world_size():
            rest = {
                name: x if name == "samples" else x / total**2
                for name, x in zip(known, sums[len(parts) :], strict=True)
            }
        return replace(joined, matrix=summary.matrix, **rest)

    def _by_reference(self, request: Request) -> Summary:
        if self.curvature == "fisher":
            eager_loss(self.problem, *request.batch)  # an error of the loss itself comes first
            raise InputError("summary: curvature=fisher: needs a model that can be traced; use gauss_newton")
        if isinstance(self.problem, CutProblem):
            return reference_gauss_newton(self.problem, request, diagonal=self.diagonal)
        return reference_summary(self.problem, request, third=self.third, diagonal=self.diagonal)


@explained(loss_fn=_LOSS, direction="u by parameter name, such as the gradients")
def summarize(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    partition: PartitionChoice,
    direction: Direction,
    *,
    forward: Forward | None = None,
    curvature: str = "hessian",
    draws: int = 1,
    generator: torch.Generator | None = None,
    third: bool | None = None,
    engine: EngineName = "auto",
    diagonal: bool = False,
    max_memory: int | None = None,
    reduction: str = "mean",
) -> Summary:
    """One summary. In a loop, use :class:`Summarizer`, which traces the model only once.

    Arguments, result and errors are those of :class:`Summarizer` and :meth:`Summarizer.summarize`.
    """
    summarizer = Summarizer(
        model,
        loss_fn,
        partition,
        forward=forward,
        curvature=curvature,
        draws=draws,
        third=third,
        engine=engine,
        diagonal=diagonal,
        max_memory=max_memory,
        reduction=reduction,
    )
    return summarizer.summarize(inputs, targets, direction, generator)


def summary_tensor(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    partition: PartitionChoice,
    direction: Direction,
    *,
    order: int,
    forward: Forward | None = None,
) -> Tensor:
    """The symmetric tensor ∇^d L[P_s1 u, …, P_sd u] for d = ``order``, shape (S,)*d, float64.

    Computed by the reference engine, for studies: the cost is about S^(d-1)/(d-1)! backward passes.
    """
    problem = Problem(model, loss_fn, chosen_partition(model, partition), forward)
    return reference_tensor(problem, problem.request(inputs, targets, direction), order)


class Takeover:
    """Asks the traced engine, and says once for each reason that the reference engine takes over.

    Args:
        task: what is computed, the first word of the message.
        engine: with any other than "auto" the error of the traced engine is raised.
    """

    def __init__(self, task: str, engine: str) -> None:
        self._task = task
        self._engine = engine
        self._reasons: set[str] = set()

    def attempt(self, request: Request, function: Callable[[], T]) -> tuple[T | None, str]:
        """What ``function`` computes by the traced engine, or None and the reason why it cannot.

        Wrong arguments and exhausted memory are raised: the reference engine would not help.
        """
        try:
            if stranger := hidden(request.batch):
                raise TraceError(f"the batch holds a {stranger}, whose tensors a trace cannot see")
            return function(), ""
        except (InputError, OutOfMemory):
            raise
        except Exception as error:
            if self._engine != "auto" or is_exhausted(error):
                raise
            reason = str(error) if isinstance(error, GnewtonError) else first_line(error, with_type=True)
        if reason not in self._reasons:
            self._reasons.add(reason)
            log.warning("%s: the reference engine takes over: %s", self._task, reason)
        return None, reason
