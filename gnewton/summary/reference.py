"""The reference engine: derivatives along groups by repeated reverse-mode differentiation.

Exact for every model that autograd can differentiate often enough, and slow: one backward pass through the
graph of the gradient per group for the Hessian, and one more through that graph for each third derivative.
It is the reference for the tangent engine and its replacement where a model cannot be traced. Three further
gradients, at parameters that differ in their last digits, measure the effect of rounding on the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton.errors import InputError
from gnewton.summary.group_parts import sums_by_group
from gnewton.summary.isolation import without_side_effects
from gnewton.summary.problem import Problem, Request
from gnewton.summary.result import COARSE, PRODUCT, Rounding, Summary
from gnewton.summary.second_derivatives import check_graph, named_gaps
from gnewton.summary.smooth import SmoothNorms

PERTURBATIONS = 3
DIGITS = 64.0  # size of a perturbation, in units of a rounding error; one of these in half precision
SPREAD = 8.0  # noise of a gradient entry, in units of its range over the perturbations
SPREAD_COARSE = 2.0  # the same in half precision


class _Derivatives:
    """Differentiates scalars with respect to the parameters and contracts the result with u, per group."""

    def __init__(self, problem: Problem, leaves: dict[str, Tensor], direction: Mapping[str, Tensor]) -> None:
        self._partition = problem.partition
        self._names = list(leaves)
        self.leaves = list(leaves.values())
        self.direction = [direction[name] for name in leaves]
        self._own_functions = True  # whether functions of the user may be behind a scalar
        self.size = len(problem.partition)

    def along(self, scalar: Tensor, *, graph: bool, groups: range | None = None) -> list[Tensor | None]:
        """⟨∂scalar/∂θ, P_s u⟩ of every group s (None: exactly zero), only for ``groups`` if given."""
        result: list[Tensor | None] = [None] * self.size
        if not scalar.requires_grad:
            return result
        holders = self._partition.holders
        if graph and self._own_functions:
            self._own_functions = check_graph([scalar])
        chosen = [
            i
            for i, name in enumerate(self._names)
            if groups is None or any(s in groups for s in holders[name])
        ]
        with named_gaps():
            grads = torch.autograd.grad(
                scalar,
                [self.leaves[i] for i in chosen],
                create_graph=graph,
                retain_graph=True,
                allow_unused=True,
            )
        for i, grad in zip(chosen, grads, strict=True):
            if grad is None:
                continue
            # the sum over the parameters of a group in float64; the graph keeps the model's precision
            held, sums = sums_by_group(self._partition, self._names[i], grad * self.direction[i])
            for s, term in zip(held, sums.unbind(), strict=True):
                if groups is None or s in groups:
                    known = result[s]
                    result[s] = term if known is None else known + term
        return result

    def sized(self, scalar: Tensor, rounding: Rounding) -> tuple[Tensor, Tensor]:
        """⟨∂scalar/∂θ, P_s u⟩ of every group s, and the rounding error of that sum, both (S,)."""
        entries = torch.zeros(self.size, dtype=torch.float64, device=scalar.device)
        sizes = torch.zeros_like(entries)
        if scalar.requires_grad:
            grads = torch.autograd.grad(scalar, self.leaves, allow_unused=True)
            for name, grad, u in zip(self._names, grads, self.direction, strict=True):
                if grad is not None:
                    terms = (grad * u).double()
                    groups, sums = sums_by_group(self._partition, name, terms)
                    entries[list(groups)] += sums
                    lengths = sums_by_group(self._partition, name, terms.abs())[1]
                    sizes[list(groups)] += lengths * rounding.inner(terms.numel())
        return entries, sizes


def _stack(entries: list[Tensor | None], device: torch.device) -> Tensor:
    zero = torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack([zero if entry is None else entry.detach() for entry in entries])


def _prepare(
    problem: Problem, request: Request, parameters: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, _Derivatives]:
    """The loss at ``parameters``, or at those of the model, and its derivatives."""
    if parameters is None:
        leaves = problem.copied_parameters()
    else:
        leaves = {name: p.requires_grad_() for name, p in parameters.items()}
    # the model may write into its arguments
    copies = pytree.tree_map_only(Tensor, torch.clone, (problem.constants(), *request.batch))
    with SmoothNorms():
        loss = problem.loss(leaves, *copies)
    return loss, _Derivatives(problem, leaves, request.direction)


def _perturbation(dtype: torch.dtype) -> float:
    eps = torch.finfo(dtype).eps
    return DIGITS * eps if eps < COARSE else eps


def gradient_noise(problem: Problem, request: Request, gradient: Tensor) -> tuple[Tensor, Rounding]:
    """The noise (S,) of the gradient (S,), and the rounding errors of the precision it was formed in.

    Parameters are multiplied by 1 ± a small multiple of the relative rounding error of their type, so that
    even means of many numbers are rounded differently. The change of an entry estimates the effect of all
    roundings of a pass. The error of the sum over a group is added.
    """
    device = problem.device()
    generator = torch.Generator(device).manual_seed(0)  # the random streams stay where they are
    gradients, sizes, rounding = [gradient], torch.zeros_like(gradient), Rounding(0.0)
    for _ in range(PERTURBATIONS):
        perturbed = {}
        for name, p in problem.parameters().items():
            sign = torch.randint(0, 2, p.shape, generator=generator, device=device) * 2 - 1
            perturbed[name] = p * (1 + _perturbation(p.dtype) * sign.to(p.dtype))
        with without_side_effects(problem):  # the same random draws every time
            loss, derive = _prepare(problem, request, perturbed)
            rounding = Rounding.of([loss.dtype, *(p.dtype for p in perturbed.values())], device)
            entries, sizes = derive.sized(loss, rounding)
        gradients.append(entries)
    every = torch.stack(gradients)
    spread = SPREAD if rounding.unit < COARSE else SPREAD_COARSE
    return spread * (every.amax(0) - every.amin(0)) + PRODUCT * sizes, rounding


def reference_summary(
    problem: Problem, request: Request, *, third: bool = True, diagonal: bool = False
) -> Summary:
    """The summary by reverse over reverse (over reverse) differentiation.

    Args:
        problem: model, loss and partition of S groups.
        request: the batch and the direction.
        third: whether to form the third derivatives.
        diagonal: whether to keep only the diagonal of the Hessian.

    Returns:
        Gradient (S,), Hessian (S, S) or its diagonal (S,), third derivative (S,) or None, the loss, and the
        noise of each. That of the gradient costs three more gradients, beside the 2S backward passes; that of
        the Hessian is its asymmetry and a share of the entries, that of the third derivative such a share.
    """
    device = problem.device()
    with without_side_effects(problem):
        loss, derive = _prepare(problem, request)
        first = derive.along(loss, graph=True)
        rows: list[Tensor] = []
        thirds: list[Tensor | None] = []
        for s, entry in enumerate(first):
            this_group = range(s, s + 1)
            row: list[Tensor | None] = (
                [None] * len(first)
                if entry is None
                else derive.along(entry, graph=third, groups=this_group if diagonal else None)
            )
            rows.append(_stack(row, device))
            if third:
                curvature = row[s]
                cubic = (
                    None if curvature is None else derive.along(curvature, graph=False, groups=this_group)[s]
                )
                thirds.append(cubic)
        gradient, hessian = _stack(first, device), torch.stack(rows)
        cubes = _stack(thirds, device) if third else None
    asymmetry = torch.zeros_like(gradient) if diagonal else (hessian - hessian.T).abs()
    hessian = hessian.diagonal().clone() if diagonal else (hessian + hessian.T) / 2
    level, rounding = gradient_noise(problem, request, gradient)
    return Summary(
        gradient=gradient,
        hessian=hessian,
        third=cubes,
        loss=loss.detach().double(),
        gradient_noise=level,
        hessian_noise=asymmetry + rounding.curved * hessian.abs(),
        third_noise=None if cubes is None else rounding.curved * cubes.abs(),
    )


def reference_tensor(problem: Problem, request: Request, order: int) -> Tensor:
    """The summary tensor ∇^d L[P_s1 u, …, P_sd u] of any order d ≥ 0, shape (S,)*d, exactly symmetric.

    Costs about S^(d-1)/(d-1)! backward passes through ever longer graphs.

    Raises:
        InputError: for a negative order.
    """
    if order < 0:
        raise InputError(f"summary: order={order}: must be an integer >= 0")
    device, size = problem.device(), len(problem.partition)
    with without_side_effects(problem):
        loss, derive = _prepare(problem, request)
        tensor = torch.zeros((size,) * order, dtype=torch.float64, device=device)

        def fill(scalar: Tensor, at: tuple[int, ...]) -> None:
            if len(at) == order:
                for permuted in set(itertools.permutations(at)):
                    tensor[permuted] = scalar.detach()
                return
            start = at[-1] if at else 0
            entries = derive.along(scalar, graph=len(at) + 1 < order, groups=range(start, size))
            for s, entry in enumerate(entries):
                if entry is not None:
                    fill(entry, (*at, s))

        fill(loss.double(), ())
        return tensor


def reference_derivatives(problem: Problem, request: Request, order: int) -> Tensor:
    """d^k/dt^k L(θ + t P_s u) at t = 0 for every group s and k = 0 … ``order``, (S, order + 1), float64.

    Reverse mode is nested ``order`` times, group by group; the graph grows exponentially with the order.
    """
    device, size = problem.device(), len(problem.partition)
    with without_side_effects(problem):
        loss, derive = _prepare(problem, request)
        derivatives = torch.zeros(size, order + 1, dtype=torch.float64, device=device)
        derivatives[:, 0] = loss.detach()
        for s, scalar in enumerate(derive.along(loss.double(), graph=order > 1)):
            k = 1
            while scalar is not None:
                derivatives[s, k] = scalar.detach()
                k += 1
                if k > order:
                    break
                scalar = derive.along(scalar, graph=k < order, groups=range(s, s + 1))[s]
        return derivatives
