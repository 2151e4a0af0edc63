"""The direction u of the step, proposed by any first-order torch optimizer (method, section 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError

DirectionFactory = Callable[[list[Tensor]], torch.optim.Optimizer]


class ShadowDirection:
    """Runs an optimizer on shadow parameters that stand at zero; what it would have subtracted is u.

    The shadows start every step at zero, so u = −(shadow after the step) carries no cancellation error, at
    any scale of the parameters. The price is that the inner optimizer never sees the parameters themselves:
    weight decay has to be 0 there.

    Args:
        parameters: the parameters whose ``.grad`` feeds the direction.
        factory: builds the inner optimizer from a list of tensors, for instance
            ``functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9)``. The scale of its learning rate is
            immaterial: the rates of GroupedNewton undo it.

    Raises:
        InputError: if the inner optimizer uses weight decay, or needs a closure (L-BFGS).
    """

    def __init__(self, parameters: Sequence[Tensor], factory: DirectionFactory) -> None:
        self._parameters = list(parameters)
        self._shadows = [torch.zeros_like(p, requires_grad=True) for p in self._parameters]
        self.inner = factory(self._shadows)
        if isinstance(self.inner, torch.optim.LBFGS):
            raise InputError(
                "direction=LBFGS: must be an optimizer that steps from one gradient, without closure"
            )
        for group in self.inner.param_groups:
            if group.get("weight_decay"):
                raise InputError(f"direction weight_decay={group['weight_decay']}: must be 0")

    @torch.no_grad()
    def update(self) -> list[Tensor]:
        """Advance the inner optimizer by one step and return u, one tensor per parameter, pointing uphill.

        The tensors are valid until the next call. A parameter without gradient gets a zero direction.
        """
        torch._foreach_zero_(self._shadows)
        for shadow, parameter in zip(self._shadows, self._parameters, strict=True):
            if parameter.grad is not None and parameter.grad.is_sparse:
                raise InputError("sparse gradients are not supported: build the embedding with sparse=False")
            shadow.grad = parameter.grad
        self.inner.step()
        for shadow in self._shadows:
            shadow.grad = None
        torch._foreach_neg_(self._shadows)
        return [shadow.detach() for shadow in self._shadows]

    def state_dict(self) -> dict[str, Any]:
        """State of the inner optimizer (momentum buffers and the like)."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.inner.load_state_dict(state)
