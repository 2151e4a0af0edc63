"""HessianVector: the Newton direction is itself learned by SGD, with one Hessian-vector product per step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gnewton.arguments import check_options, explained
from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import BoundOptimizer, CurvatureBatches, evaluated, refuse_sparse
from gnewton.optim.grouping import Trained, trainable
from gnewton.optim.hyperparameters import HessianVectorHyperparameters
from gnewton.partition import Partition
from gnewton.processes import mean_over_processes, world_size
from gnewton.summary.batch import batch_size, opened
from gnewton.summary.problem import Forward, LossFunction, Problem, check_loss
from gnewton.summary.reference import hessian_vector_product
from gnewton.wrappers import unwrapped


class HessianVector(BoundOptimizer):
    """d ← d − lr_d (∇²L d − g + ρ d), then θ ← θ − lr d: one Hessian-vector product per step, no inverse.

    At a fixed point d solves the ridge-regularised Newton equation (∇²L + ρ) d = g. The update of d is a step
    of stochastic gradient descent on ½ dᵀ(∇²L + ρ)d − gᵀd, so lr_d must be below 2 / (λ_max + ρ). Along
    eigenvectors of ∇²L with eigenvalues below −ρ, d grows exponentially, but slowly.

    Args:
        model: the network, also wrapped; its trainable parameters are updated in place.
        loss_fn: ``loss_fn(outputs, targets)``, the mean loss over the batch; the model is called as in
            :class:`~gnewton.optim.grouped_newton.GroupedNewton`.
        lr: step length along d, > 0; 1 is Newton's. Torch's schedulers act on it.
        lr_direction: lr_d > 0.
        ridge: ρ >= 0.
        curvature: batches for ∇²L, an iterable restarted when exhausted; None: the batch given to
            :meth:`step`.
        forward: for other batches, as for GroupedNewton.

    Raises:
        InputError: for a value out of range.
    """

    why_fixed: ClassVar[str] = "the direction is learned for the parameters together"

    @explained(
        loss_fn="pass the function of (outputs, targets), such as torch.nn.functional.cross_entropy",
        damping="ridge= is ρ, which is added to the curvature",
    )
    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFunction,
        *,
        lr: float = 0.1,
        lr_direction: float = 0.1,
        ridge: float = 0.1,
        curvature: Iterable[Any] | None = None,
        forward: Forward | None = None,
    ) -> None:
        model = unwrapped(model)
        check_loss(loss_fn)
        check_options(HessianVectorHyperparameters, lr=lr, lr_direction=lr_direction, ridge=ridge)
        partition = Partition.single(model)
        self._named = trainable(model)
        super().__init__(list(self._named.values()), {"lr": lr, "lr_direction": lr_direction, "ridge": ridge})
        self._problem = Problem(model, loss_fn, partition, forward)
        self._trained = Trained(
            model,
            self._named,
            holder="HessianVector",
            missing="it does not hold {}; freeze it or build a new HessianVector",
        )
        self._batches = CurvatureBatches(curvature, whole=forward is not None)
        for p in self._named.values():
            self.state[p]["direction"] = torch.zeros_like(p)
        self._built = True

    def step(self, closure: Callable[[], Any] | None = None, *, batch: Any = None) -> Any:  # type: ignore[override]
        """Make one step from the gradients in ``.grad``.

        Args:
            closure: recomputes the loss with gradients; optional.
            batch: (inputs, targets) for the product, if there are no curvature batches.

        Returns:
            The value of ``closure``, or None.

        Raises:
            InputError: if there is no batch, or the model trains other parameters than at the start.
        """
        self._trained.check()
        loss = evaluated(closure)
        directions = {name: self.state[p]["direction"] for name, p in self._named.items()}
        inputs, targets = self._batches.next(batch)
        _, product = hessian_vector_product(self._problem, inputs, targets, directions)
        products = list(product.values())
        if world_size() > 1:
            products = mean_over_processes(products, batch_size(*opened((inputs, targets))))
        self._move(list(directions.values()), products)
        return loss

    @torch.no_grad()
    def _move(self, d: list[Tensor], residual: list[Tensor]) -> None:
        """Move d and the parameters; ``residual`` holds the product and is overwritten."""
        (group,) = self.param_groups
        refuse_sparse(self._named.values())
        torch._foreach_add_(residual, d, alpha=group["ridge"])
        gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._named.values()]
        torch._foreach_sub_(residual, gradient)
        torch._foreach_add_(d, residual, alpha=-group["lr_direction"])
        torch._foreach_add_(list(self._named.values()), d, alpha=-group["lr"])

    def state_dict(self) -> dict[str, Any]:
        """Torch's state, which includes the directions, and the position of the curvature batches."""
        return {**super().state_dict(), "curvature_position": self._batches.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`.

        Raises:
            InputError: if the state belongs to another optimizer.
        """
        if "curvature_position" not in state_dict:
            raise InputError("state_dict: it was not written by HessianVector")
        super().load_state_dict({key: state_dict[key] for key in ("state", "param_groups")})
        self._batches.seek(state_dict["curvature_position"])
