"""The loss cut in two at the outputs of the model: θ ↦ outputs ↦ loss.

The Gauss–Newton matrix keeps the curvature of the second half alone. Parameters that the loss reads directly,
such as those of a penalty, count as outputs too: their curvature is kept as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gnewton.summary.batch import closed, opened
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
from gnewton.summary.problem import Problem, loss_arguments
from gnewton.summary.smooth import FunctionMode

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
        given = args[0] if args else kwargs.get("input")
        if func is F.nll_loss and holds(self._views, given) and normalised(given):
            return F.cross_entropy(*args, **kwargs)
        if func is F.binary_cross_entropy_with_logits:
            return bernoulli_loss(*args, **kwargs)
        if func in _MARKED:
            return marked(_MARKED[func](*args, **kwargs))
        result = func(*args, **kwargs)
        if func in VIEWS and holds(self._views, given) and isinstance(result, Tensor):
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
            pushed = torch.autograd.grad(
                [g for g, _ in pairs], duals, [u for _, u in pairs], retain_graph=True, allow_unused=True
            )
        result.append([torch.zeros_like(z) if p is None else p for z, p in zip(outputs, pushed, strict=True)])
    return result
