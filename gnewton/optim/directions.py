"""The directions of a step, chosen by name or factory: one, or several whose rates come from one problem."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from gnewton.arguments import shown
from gnewton.errors import InputError
from gnewton.optim.inner_optimizers import CompositeOptimizer, parts
from gnewton.optim.kfac.direction import is_watchable, watching
from gnewton.optim.kfac.optimizer import KFAC
from gnewton.optim.shadow_direction import DirectionFactory, ShadowDirection
from gnewton.options import did_you_mean
from gnewton.partition import Partition


def muon_with_adamw(
    parameters: Sequence[tuple[str, Tensor]],
    *,
    lr: float = 1.0,
    momentum: float = 0.95,
    nesterov: bool = True,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.Optimizer:
    """Muon (Jordan et al. 2024) on the matrices and AdamW on every other tensor, with steps on one scale.

    torch's Muon takes only matrices. Its steps are scaled to the root mean square of AdamW's (Liu et al.
    2025, arXiv 2502.16982), so that one learning rate serves both.

    Args:
        parameters: (name, tensor) pairs.
        lr: learning rate of both.
        momentum, nesterov: of Muon.
        weight_decay: decoupled, of both.
        betas, eps: of AdamW.

    Raises:
        InputError: if torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise InputError(
            f"direction=muon: torch {torch.__version__} has no Muon; it needs torch 2.9 or later"
        )
    matrices = [(name, p) for name, p in parameters if p.ndim == 2]
    others = [(name, p) for name, p in parameters if p.ndim != 2]
    parts: list[torch.optim.Optimizer] = []
    if matrices:
        parts.append(
            torch.optim.Muon(
                matrices,
                lr=lr,
                weight_decay=weight_decay,
                momentum=momentum,
                nesterov=nesterov,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        parts.append(torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))
    return CompositeOptimizer(parts)


AVERAGE: DirectionFactory = partial(torch.optim.SGD, lr=1.0, momentum=0.9, dampening=0.9)
"""The exponential average of the gradient, of the length of a gradient."""

ADAM: DirectionFactory = partial(torch.optim.Adam, lr=1.0)
"""The mean gradient over its root mean square."""

NAMED: dict[str, DirectionFactory] = {
    "average": AVERAGE,
    "gradient": partial(torch.optim.SGD, lr=1.0),
    "sgd": partial(torch.optim.SGD, lr=1.0, momentum=0.9),
    "adam": ADAM,
    "adamw": partial(torch.optim.AdamW, lr=1.0),
    "nadam": partial(torch.optim.NAdam, lr=1.0),
    "rmsprop": partial(torch.optim.RMSprop, lr=1.0),
    "muon": muon_with_adamw,
}
"""Directions by name, with the same options as on the command line (``optimizer/direction=…``)."""


@dataclass(frozen=True)
class Shared:
    """A direction, beside others, with one rate for all groups: one more number in a summary, not S more.

    Attributes:
        factory: builds the optimizer, as for any other direction.
    """

    factory: DirectionFactory

    def __call__(self, named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        """The optimizer of (name, tensor) pairs."""
        return self.factory(named)


PAIR: dict[str, DirectionFactory] = {"gradient": Shared(NAMED["gradient"]), "adam": ADAM}
"""One rate for the gradient of the batch, common to all groups, and a rate of each group for Adam's step
(docs/results/directions.md)."""

DirectionChoice = str | DirectionFactory | Mapping[str, str | DirectionFactory]
"""A name, "pair" for :data:`PAIR`, "kfac" for K-FAC's step (:mod:`gnewton.optim.kfac.direction`), a factory,
or a mapping from labels to names or factories."""


def chosen_directions(
    choice: DirectionChoice | None, model: nn.Module, loss_fn: Callable[..., Any]
) -> dict[str, DirectionFactory]:
    """The factories that ``choice`` names, by label; a single one has the empty label.

    None names "kfac", or "pair" for a model that is compiled or has no layer for K-FAC.

    Args:
        choice: what is to be built.
        model, loss_fn: for a direction that watches the network.

    Raises:
        InputError: for an unknown name, an optimizer instead of a factory, or any other object.
    """
    if choice is None:
        choice = "kfac" if is_watchable(model) else "pair"
    known = {**NAMED, "kfac": watching(model, loss_fn)}
    if choice == "pair":
        return dict(PAIR)
    if not isinstance(choice, Mapping):
        if isinstance(choice, Shared):
            raise InputError("direction: a shared one needs another beside it; or choose partition=single")
        return {"": _factory("direction", choice, known)}
    if not choice:
        raise InputError("direction: the mapping is empty; at least one direction is needed")
    factories = {label: _factory(f"direction['{label}']", member, known) for label, member in choice.items()}
    if all(isinstance(factory, Shared) for factory in factories.values()):
        raise InputError("direction: one at least must not be shared, so that every group has a rate")
    return factories


def check_factory(argument: str, choice: Any) -> None:
    """Check that ``choice`` is a factory: a function from (name, tensor) pairs to an optimizer.

    Raises:
        InputError: if it is not.
    """
    if isinstance(choice, torch.optim.Optimizer):
        kind = type(choice).__name__
        raise InputError(
            f"{argument}=<{kind}>: must be a function that builds an optimizer, not an optimizer; pass "
            f"functools.partial({kind}, lr=1.0)"
        )
    if not callable(choice):
        raise InputError(
            f"{argument}={shown(choice)}: must be a function from (name, tensor) pairs to an optimizer, such "
            "as functools.partial(torch.optim.SGD, lr=1.0)"
        )


def _factory(argument: str, choice: Any, known: Mapping[str, DirectionFactory]) -> DirectionFactory:
    if isinstance(choice, str):
        if choice not in known:
            names = [*known, "pair"]
            raise InputError(
                f"{argument}={choice}: must be one of {', '.join(names)}, or a function from (name, tensor) "
                f"pairs to an optimizer{did_you_mean(choice, names)}"
            )
        return known[choice]
    if isinstance(choice, (list, tuple)):
        raise InputError(
            f"{argument}=<{type(choice).__name__}>: several directions are given by name, as in "
            "{'gradient': …, 'average': …}"
        )
    check_factory(argument, choice)
    factory: Callable[..., torch.optim.Optimizer] = choice
    return factory


class Directions:
    """k first-order methods side by side, all fed with the same gradients.

    Args:
        parameters: (name, parameter) pairs whose ``.grad`` feeds the directions.
        choice: a name, a factory, or several of them by label (:data:`DirectionChoice`).
        model, loss_fn: of the training, for a direction that watches the network.
        maximize: as in :class:`~gnewton.optim.shadow_direction.ShadowDirection`.

    Attributes:
        labels: labels of the methods; a single one has the empty label.
        shared: numbers of the methods with one rate for all groups.

    Raises:
        InputError: if the mapping is empty, or as for
            :class:`~gnewton.optim.shadow_direction.ShadowDirection`.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, Tensor]],
        choice: DirectionChoice | None,
        *,
        model: nn.Module,
        loss_fn: Callable[..., Any],
        maximize: bool = False,
    ) -> None:
        named = list(parameters)
        factories = chosen_directions(choice, model, loss_fn)
        self.labels = tuple(factories)
        self.shared = tuple(j for j, f in enumerate(factories.values()) if isinstance(f, Shared))
        self.members = [ShadowDirection(named, factory, maximize=maximize) for factory in factories.values()]
        self.quadratic_decay()

    def update(self, *, fresh: bool = False) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Advance every method by one step; return u_1 … u_k and v_1 … v_k, valid until the next call.

        Without ``fresh`` the second list is the first (see :meth:`ShadowDirection.advance`).
        """
        both = [member.advance(fresh=fresh) for member in self.members]
        return [step for step, _ in both], [newest for _, newest in both]

    @property
    def with_kfac(self) -> bool:
        """Whether one of the methods is K-FAC, for some of the parameters at least."""
        return any(isinstance(part, KFAC) for member in self.members for part in parts(member.inner))

    def kinds(self, partition: Partition) -> list[int]:
        """The number of the method that makes the step of each entry of a partition: the part of a composite
        that steps most numbers of the group, counted over all directions.
        """
        by_member = [[(j, kind) for kind in m.kinds(partition)] for j, m in enumerate(self.members)]
        numbers = {kind: i for i, kind in enumerate(sorted({k for kinds in by_member for k in kinds}))}
        return [numbers[kind] for entry in zip(*by_member, strict=True) for kind in entry]

    def weights(self) -> list[list[float]]:
        """:attr:`ShadowDirection.weights` of every method."""
        return [member.weights for member in self.members]

    def quadratic_decay(self) -> list[float]:
        """wd of the term (wd/2)‖θ‖² of the objective, one per parameter.

        Raises:
            InputError: if the directions have different decays, and thus different objectives.
        """
        first, *others = [member.quadratic_decay() for member in self.members]
        if any(other != first for other in others):
            raise InputError(
                "direction: all of them must have the same weight_decay, coupled in all (as in SGD and Adam) "
                "or in none (AdamW, Muon, K-FAC)"
            )
        return first

    def renew(self, *, always: bool) -> None:
        """Reset the methods whose state is not finite; with ``always`` all methods."""
        for member in self.members:
            if always or not member.is_finite():
                member.restart()

    def extended(self, parameters: Iterable[tuple[str, Tensor]]) -> Directions:
        """The same methods on more parameters (:meth:`ShadowDirection.extended`); these are unchanged."""
        named = list(parameters)
        grown = copy.copy(self)
        grown.members = [member.extended(named) for member in self.members]
        grown.quadratic_decay()
        return grown

    def forget_gradients(self) -> None:
        """Discard what was gathered from gradients since the last step."""
        for member in self.members:
            member.forget_gradients()

    def close(self) -> None:
        """Release the model, which the directions listen to."""
        for member in self.members:
            member.close()

    def state_dict(self) -> dict[str, Any]:
        """The states of the inner optimizers and their step counts, in order."""
        return {
            "members": [member.state_dict() for member in self.members],
            "steps": [member.steps for member in self.members],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`, bit for bit."""
        for member, saved, steps in zip(self.members, state["members"], state["steps"], strict=True):
            member.load_state_dict(saved, steps)
