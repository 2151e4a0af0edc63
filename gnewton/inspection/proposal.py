"""The direction that an optimizer would propose next, its state restored."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from gnewton.optim.shadow_direction import DirectionFactory, ShadowDirection


class Proposal:
    """A first-order method at learning rate 1 that proposes directions while the model stays where it is.

    Args:
        model: its parameters' ``.grad`` feeds the method.
        factory: builds it from (name, tensor) pairs.
        order: names of all trainable parameters, in the order in which ``state`` numbers them.
        state: of the method; None: as it begins.
    """

    def __init__(
        self,
        model: nn.Module,
        factory: DirectionFactory,
        order: Sequence[str],
        state: dict[str, Any] | None = None,
    ) -> None:
        parameters = dict(model.named_parameters())
        self._order = list(order)
        self._shadow = ShadowDirection([(name, parameters[name]) for name in order], factory)
        if state is not None:
            self._shadow.load_state_dict(deepcopy(state))  # torch would go on in the same tensors

    def advance(self) -> dict[str, Tensor]:
        """Take in the gradient and return u by parameter name, pointing uphill; valid until the next call."""
        return dict(zip(self._order, self._shadow.update(), strict=True))

    def decay(self) -> dict[str, float]:
        """wd of the terms (wd/2)‖θ‖² that the method adds to the loss, by parameter name."""
        return dict(zip(self._order, self._shadow.quadratic_decay(), strict=True))
