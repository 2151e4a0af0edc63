"""The loss cut in two at the outputs of the model: θ ↦ outputs ↦ loss.

The Gauss–Newton matrix keeps the curvature of the second half alone. Parameters that the loss reads directly,
such as those of a penalty, count as outputs too: their curvature is kept as it is. Its reference by textbook
differentiation, for every model, stands here as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.errors import InputError
from gnewton.summary.batch import closed, opened
from gnewton.summary.group_parts import GroupDirections, check_carried
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.likelihoods import (
    VIEWS,
    Entries,
    bernoulli_loss,
    gaussian_entries,
    holds,
    marked,
    normalised,
    poisson_entries,
)
from gnewton.summary.problem import Problem, Request, loss_arguments
from gnewton.summary.reference import gradient_noise
from gnewton.summary.result import Rounding, Summary
from gnewton.summary.second_derivatives import check_graph, named_gaps
from gnewton.summary.smooth import FunctionMode, SmoothNorms

MATRICES = ("hessian", "gauss_newton", "fisher")


class _Natural(FunctionMode):
    """Losses of the outputs in the form in which their distribution is recognised.

    The negative log-likelihood is linear in log-probabilities q, so nothing of its curvature would lie behind
    the outputs. As logits they have the same probabilities, hence the same loss, and the curvature
    diag(p) − ppᵀ is that of the model's own logits. The binary cross-entropy with logits is written with
    log σ(z); the Gaussian and the Poisson likelihood are marked (:mod:`gnewton.summary.likelihoods`).
    """

    def __init__(self, outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._views = list(outputs)  # the outputs, and views of them

    def _call(self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        argument = args[0] if args else kwargs.get("input")
        if func is F.nll_loss and holds(self._views, argument) and normalised(argument):
            return F.cross_entropy(*args, **kwargs)
        if func is F.binary_cross_entropy_with_logits:
            return bernoulli_loss(*args, **kwargs)
        if func in _MARKED:
            return marked(_MARKED[func](*args, **kwargs))
        result = func(*args, **kwargs)
        if func in VIEWS and holds(self._views, argument) and isinstance(result, Tensor):
            self._views.append(result)
        return result


_MARKED: dict[Any, Callable[..., Entries]] = {
    F.gaussian_nll_loss: gaussian_entries,
    F.poisson_nll_loss: poisson_entries,
}


@dataclass(frozen=True)
class CutProblem(Problem):
    """A problem that also returns the outputs of its model, and takes other outputs in their place."""

    _record: list[Any] = field(default_factory=list, init=False, repr=False, compare=False)

    def results(
        self, parameters: Mapping[str, Tensor], constants: Mapping[str, Tensor], inputs: Any, targets: Any
    ) -> tuple[Tensor, ...]:
        """The loss, and every output that is a tensor of floating point."""
        self._record[:] = [None, None]
        loss = self.loss(parameters, constants, inputs, targets)
        outputs = self._record[1]
        self._record.clear()
        return loss, *outputs

    def loss_at(
        self,
        outputs: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        constants: Mapping[str, Tensor],
        inputs: Any,
        targets: Any,
    ) -> Tensor:
        """The loss with ``outputs`` in place of those that :meth:`results` returns."""
        self._record[:] = [list(outputs), None]
        loss = self.loss(parameters, constants, inputs, targets)
        self._record.clear()
        return loss

    def _objective(self, inputs: Any, targets: Any, model: nn.Module) -> Any:
        inputs, targets = closed((inputs, targets))
        result, beside = loss_arguments(model, self.forward, inputs, targets)
        leaves, spec = pytree.tree_flatten(opened(result))
        moving = [i for i, leaf in enumerate(leaves) if _is_output(leaf)]
        if self._record and self._record[0] is not None:
            for i, other in zip(moving, self._record[0], strict=True):
                leaves[i] = other
        outputs = [leaves[i] for i in moving]
        if self._record:
            self._record[1] = outputs
        with _Natural(outputs):
            return self.loss_fn(closed(pytree.tree_unflatten(leaves, spec)), beside)


def _is_output(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def tangents_of(outputs: Sequence[Tensor], leaves: Sequence[Tensor], rows: Any) -> list[list[Tensor]]:
    """J u for several directions u, by differentiating v ↦ Jᵀv; the outputs keep their graph.

    Args:
        outputs: the values, with a graph to the leaves.
        leaves: the parameters.
        rows: an iterable of directions, each a list of tensors in the shapes of the leaves (None: zero).
    """
    duals = [torch.zeros_like(z, requires_grad=True) for z in outputs]
    moving = [(z, v) for z, v in zip(outputs, duals, strict=True) if z.requires_grad]
    pulled: Sequence[Tensor | None] = [None] * len(leaves)
    if moving:
        check_graph(outputs)
        pulled = torch.autograd.grad(
            [z for z, _ in moving], leaves, [v for _, v in moving], create_graph=True, allow_unused=True
        )
    result = []
    for row in rows:
        pairs = [
            (g, u)
            for g, u in zip(pulled, row, strict=True)
            if g is not None and u is not None and g.requires_grad
        ]
        pushed: Sequence[Tensor | None] = [None] * len(duals)
        if pairs:
            with named_gaps():
                pushed = torch.autograd.grad(
                    [g for g, _ in pairs], duals, [u for _, u in pairs], retain_graph=True, allow_unused=True
                )
        result.append([torch.zeros_like(z) if p is None else p for z, p in zip(outputs, pushed, strict=True)])
    return result


FLAT = (
    "summary: curvature=gauss_newton: the loss is linear in the outputs of the model, so its Gauss–Newton "
    "matrix is zero; split the computation into a model and a loss_fn that is convex in the model's outputs"
)

NOT_CONVEX = (
    "summary: curvature=gauss_newton: the loss is not convex in the outputs of the model; use "
    "curvature=hessian, or curvature=fisher for a likelihood"
)


def reference_gauss_newton(problem: CutProblem, request: Request, *, diagonal: bool = False) -> Summary:
    """Gradient and Gauss–Newton matrix of a batch, at the cost of about 2S backward passes.

    Args:
        problem: model, loss and partition of S groups.
        request: the batch and the direction.
        diagonal: whether to keep only the diagonal of the matrix.

    Raises:
        InputError: if the loss is linear in the outputs, or not convex in them.
    """
    device = problem.device()
    check_carried(problem.partition, "the Gauss–Newton matrix by the reference engine")
    with without_side_effects(problem), SmoothNorms():
        leaves = problem.copied_parameters()
        parameters = list(leaves.values())
        rows = GroupDirections(problem.partition, request.direction, list(leaves))
        trees = (problem.constants(), *request.batch)
        copies = pytree.tree_map_only(Tensor, torch.clone, trees)
        loss, *outputs = problem.results(leaves, *copies)
        grads: Any = [None] * len(parameters)
        if loss.requires_grad:
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        gradient = rows.gradient(grads, device)
        tangents = tangents_of(outputs, parameters, rows)
    with without_side_effects(problem), SmoothNorms():
        cut = [z.detach().requires_grad_() for z in outputs]
        fresh = problem.copied_parameters()
        copies = pytree.tree_map_only(Tensor, torch.clone, trees)
        value = problem.loss_at(cut, fresh, *copies)
        variables = [*cut, *fresh.values()]
        matrix = _curvature(value, variables, [[*t, *r] for t, r in zip(tangents, rows, strict=True)], device)
    if not matrix.any() and gradient.any():
        raise InputError(FLAT)
    check_convex(matrix, {p.dtype for p in problem.parameters().values()})
    noise, rounding = gradient_noise(problem, request, gradient)
    matrix = matrix.diagonal().clone() if diagonal else (matrix + matrix.T) / 2
    return Summary(
        gradient=gradient,
        hessian=matrix,
        third=None,
        loss=loss.detach().double(),
        gradient_noise=noise,
        hessian_noise=rounding.curved * matrix.abs(),
        matrix="gauss_newton",
    )


def _curvature(value: Tensor, variables: list[Tensor], rows: list[Any], device: torch.device) -> Tensor:
    """⟨a_s, ∇²value a_t⟩ for the rows a_s, (S, S), float64."""
    size = len(rows)
    matrix = torch.zeros(size, size, dtype=torch.float64, device=device)
    if not value.requires_grad:
        return matrix
    check_graph([value])
    slopes = torch.autograd.grad(value, variables, create_graph=True, allow_unused=True)
    curved = [(k, g) for k, g in enumerate(slopes) if g is not None and g.requires_grad]
    for t, row in enumerate(rows):
        pairs = [(g, row[k]) for k, g in curved if row[k] is not None]
        if not pairs:
            continue
        with named_gaps():
            products = torch.autograd.grad(
                [g for g, _ in pairs], variables, [a for _, a in pairs], retain_graph=True, allow_unused=True
            )
        for s, other in enumerate(rows):
            for a, h in zip(other, products, strict=True):
                if a is not None and h is not None:
                    matrix[s, t] += (a * h).sum(dtype=torch.float64)
    return matrix


def check_convex(matrix: Tensor, dtypes: Iterable[torch.dtype]) -> None:
    """Check that a Gauss–Newton matrix (S, S) is positive semi-definite, up to rounding.

    Args:
        matrix: the matrix, or its diagonal.
        dtypes: the types it was computed in; the coarsest one counts.

    Raises:
        InputError: if it is not: then the loss is not convex in the outputs.
    """
    entries = matrix if matrix.dim() == 1 else torch.linalg.eigvalsh((matrix + matrix.T) / 2)
    lowest, size = entries.amin(), entries.abs().amax()
    if bool(lowest < -max(1e-6, 4 * Rounding.of(dtypes, matrix.device).unit) * size):
        raise InputError(NOT_CONVEX)
