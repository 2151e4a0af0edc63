"""DoG, stochastic gradient descent whose step size is a distance over gradients, evaluated at an average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import evaluated, put_back, refuse_sparse
from gnewton.optim.inner_optimizers import restore_scalars

DELAY = 8
"""γ of the polynomial-decay average, the value of the authors."""

_REACH, _ENERGY, _COUNT = "reach", "energy", "count"  # of all parameters, kept in the state of the first
_START, _AVERAGE = "start", "average"

_HALF = (torch.float16, torch.bfloat16)


class DoG(torch.optim.Optimizer):
    """Distance over gradients (Ivgi, Hinder, Carmon 2023, arXiv 2302.12022), of all parameters together.

    With gradients g_i at iterates θ_i and the factor c:

        θ_(t+1) = θ_t − η_t g_t,   η_t = c max(r_ε, max_(i≤t) ‖θ_i − θ_0‖) / √(ε + Σ_(i≤t) ‖g_i‖²)

    r_ε = ``initial`` · (1 + ‖θ_0‖) is the length of the first step. The model is to be evaluated at the
    average of the iterates with polynomial decay (Shamir, Zhang 2013), θ̄_1 = θ_1 and for k > 1

        θ̄_k = θ̄_(k−1) + (1 + γ)/(k + γ) (θ_k − θ̄_(k−1)),   γ = 8.

    Nothing waits for the device. A parameter without a gradient stays where it is. Lengths, and the state
    made of them, have at least the precision of float32, also for parameters of half precision.

    Args:
        params: tensors to train, as one group.
        lr: c.
        initial: the first step as a share of 1 + ‖θ_0‖.
        eps: ε, so that the first denominator is not 0.
        weight_decay: factor of the parameters in the gradients.

    Raises:
        InputError: for several groups of parameters, and in :meth:`step`, for sparse gradients.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1.0,
        initial: float = 1e-6,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "initial": initial, "eps": eps, "weight_decay": weight_decay})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take the group, if it is the first one."""
        if self.param_groups:
            raise InputError("params: DoG has one step size for all parameters; give them as one group")
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; torch would round what all parameters share to the dtype of the first."""
        super().load_state_dict(state_dict)
        restore_scalars(self, state_dict)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step with the gradients in ``.grad``, and take the result into the average.

        Args:
            closure: evaluates the loss and the gradients first.

        Returns:
            what it returned.
        """
        loss = evaluated(closure)
        (group,) = self.param_groups
        parameters = group["params"]
        refuse_sparse(parameters)
        moving = [p for p in parameters if p.grad is not None]
        if not moving:
            return loss
        shared = self._shared(group)
        gradients = [p.grad for p in moving]
        if group["weight_decay"]:
            gradients = list(torch._foreach_add(gradients, moving, alpha=group["weight_decay"]))
        away = torch._foreach_sub(parameters, self._kept(_START))
        torch.maximum(shared[_REACH], _norm(away), out=shared[_REACH])
        shared[_ENERGY] += _norm(gradients).square()
        rate = group["lr"] * shared[_REACH] / shared[_ENERGY].sqrt()
        torch._foreach_sub_(moving, torch._foreach_mul(gradients, rate))
        shared[_COUNT] += 1
        weight = (1 + DELAY) / (shared[_COUNT] + DELAY)
        torch._foreach_lerp_(self._kept(_AVERAGE), parameters, weight)
        return loss

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within the block the parameters are the average; then they are as before, bit for bit.

        Before the first step there is none, and they stay.
        """
        (group,) = self.param_groups
        parameters = group["params"]
        if not self._started():
            yield
            return
        with put_back(parameters):
            with torch.no_grad():
                torch._foreach_copy_(parameters, self._kept(_AVERAGE))
            yield

    def _shared(self, group: dict[str, Any]) -> dict[str, Any]:
        """What all parameters have together; made at the first step, with the starts and the averages."""
        parameters = group["params"]
        if not self._started():
            for p in parameters:
                self.state[p] = {_START: p.detach().clone(), _AVERAGE: p.detach().clone()}
            length = _norm(parameters)
            self.state[parameters[0]] |= {
                _REACH: group["initial"] * (1 + length),
                _ENERGY: torch.full_like(length, group["eps"]),
                _COUNT: 0,
            }
        shared: dict[str, Any] = self.state[parameters[0]]
        return shared

    def _started(self) -> bool:
        return _COUNT in self.state[self.param_groups[0]["params"][0]]

    def _kept(self, name: str) -> list[Tensor]:
        return [self.state[p][name] for p in self.param_groups[0]["params"]]


def _norm(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    """The Euclidean norm of tensors as one vector, of shape (), in float32 or better."""
    wide = [t.float() if t.dtype in _HALF else t for t in tensors]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(wide)))
