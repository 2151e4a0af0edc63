"""The directions of a step: one, or several per group whose rates come from one problem."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.direction import ShadowDirection
from gnewton.optim.named_directions import DirectionChoice, chosen_directions


class Directions:
    """k first-order methods side by side, fed with the same gradients.

    Args:
        parameters: (name, parameter) pairs whose ``.grad`` feeds the directions.
        choice: a factory or the name of one, or several by a name of their own
            (:mod:`gnewton.optim.named_directions`).
        maximize: as in :class:`~gnewton.optim.direction.ShadowDirection`.

    Attributes:
        labels: the names, one empty one for a single factory.

    Raises:
        InputError: if there is none, or as for :class:`~gnewton.optim.direction.ShadowDirection`.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        choice: DirectionChoice,
        *,
        maximize: bool = False,
    ) -> None:
        named = list(parameters)
        factories = chosen_directions(choice)
        self.labels = tuple(factories)
        self.members = [ShadowDirection(named, factory, maximize=maximize) for factory in factories.values()]
        self.quadratic_decay()

    def update(self, *, fresh: bool = False) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Advance every method by one step and return u_1 … u_k and v_1 … v_k, valid until the next call.

        Without ``fresh`` the second list is the first (:meth:`ShadowDirection.advance`).
        """
        both = [member.advance(fresh=fresh) for member in self.members]
        return [step for step, _ in both], [newest for _, newest in both]

    def weights(self) -> list[list[float]]:
        """:attr:`ShadowDirection.weights` of every method."""
        return [member.weights for member in self.members]

    def quadratic_decay(self) -> list[float]:
        """wd of the term (wd/2)‖θ‖² of the objective, one per parameter.

        Raises:
            InputError: if the directions decay differently: then they belong to different objectives.
        """
        first, *others = [member.quadratic_decay() for member in self.members]
        if any(other != first for other in others):
            raise InputError("direction: all of them must have the same coupled weight_decay")
        return first

    def renew(self, *, always: bool) -> None:
        """Start anew the methods that hold numbers that are not finite, or all of them."""
        for member in self.members:
            if always or not member.is_finite():
                member.restart()

    def extended(self, parameters: Iterable[tuple[str, Tensor]]) -> Directions:
        """The same methods on more parameters (:meth:`ShadowDirection.extended`); these are as they were."""
        named = list(parameters)
        grown = copy.copy(self)
        grown.members = [member.extended(named) for member in self.members]
        grown.quadratic_decay()
        return grown

    def close(self) -> None:
        """Let go of the model."""
        for member in self.members:
            member.close()

    def state_dict(self) -> dict[str, Any]:
        """States of the inner optimizers, in order."""
        return {
            "members": [member.state_dict() for member in self.members],
            "steps": [member.steps for member in self.members],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned, bit for bit."""
        for member, saved, steps in zip(self.members, state["members"], state["steps"], strict=True):
            member.load_state_dict(saved, steps)
