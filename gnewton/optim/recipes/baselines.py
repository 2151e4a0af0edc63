"""The first-order baselines and L-BFGS, straight from torch."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from gnewton.errors import InputError
from gnewton.optim.recipes.base import OPTIMIZERS, OptimizerRecipe, Problem
from gnewton.optim.recipes.per_parameter import as_mapping, assign
from gnewton.options import option

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gnewton.optim.direction import DirectionFactory


@dataclass(kw_only=True)
class FirstOrderRecipe(OptimizerRecipe):
    """A method whose step is proportional to its learning rate, which each parameter may have of its own."""

    why_full_precision: ClassVar[str] = ""
    why_uncompiled: ClassVar[str] = ""

    lr: float = option(above=0)
    rates: Any = option()

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """What the rates of single parameters cannot be, whatever the model."""
        try:
            as_mapping(self.rates)
        except InputError as error:
            yield "rates", str(error)

    @abstractmethod
    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """The torch optimizer with all its options but the parameters; ``lr`` is that of the others."""

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """The torch optimizer over all trainable parameters, one of its groups for each learning rate."""
        return self.method()(self._groups(named_parameters(problem)))

    def proposal(self, problem: Problem) -> DirectionFactory:
        """The same at learning rate 1 for every parameter."""

        def unit(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
            optimizer = self.method()(self._groups(named))
            for group in optimizer.param_groups:
                group["lr"] = 1.0
            return optimizer

        return unit

    def proposal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with the learning rates replaced."""
        return {**state, "param_groups": [{**group, "lr": 1.0} for group in state["param_groups"]]}

    def _groups(self, named: list[tuple[str, Tensor]]) -> list[dict[str, Any]]:
        """Parameters without a rate of their own first, then those of each rate, in model order."""
        assigned = assign(as_mapping(self.rates), [name for name, _ in named])
        members: dict[float | None, list[Tensor]] = {}
        if len(assigned) < len(named):
            members[None] = []
        for name, parameter in named:
            members.setdefault(assigned.get(name), []).append(parameter)
        return [
            {"params": parameters} if rate is None else {"params": parameters, "lr": rate}
            for rate, parameters in members.items()
        ]


@OPTIMIZERS.register("sgd")
@dataclass(kw_only=True)
class SGD(FirstOrderRecipe):
    """Stochastic gradient descent, with classical or Nesterov momentum."""

    momentum: float = option(at_least=0, below=1)
    dampening: float = option(at_least=0, at_most=1)
    nesterov: bool = option()
    weight_decay: float = option(at_least=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Momentum options without momentum would do nothing."""
        yield from super().conflicts()
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            yield "nesterov", "needs optimizer.momentum > 0 and optimizer.dampening=0"
        if self.dampening > 0 and self.momentum == 0:
            yield "dampening", "has no effect without optimizer.momentum > 0"

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """torch.optim.SGD."""
        import torch

        return partial(
            torch.optim.SGD,
            lr=self.lr,
            momentum=self.momentum,
            dampening=self.dampening,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
        )


@dataclass(kw_only=True)
class _AdamOptions(FirstOrderRecipe):
    betas: list[float] = option(at_least=0, below=1, length=2)
    eps: float = option(above=0)
    weight_decay: float = option(at_least=0)

    def arguments(self) -> dict[str, Any]:
        """The arguments that both forms have in common."""
        first, second = self.betas
        return {
            "lr": self.lr,
            "betas": (first, second),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }


@OPTIMIZERS.register("adam")
@dataclass(kw_only=True)
class Adam(_AdamOptions):
    """Adam; its weight decay is the L2 term of the loss."""

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """torch.optim.Adam."""
        import torch

        return partial(torch.optim.Adam, **self.arguments())


@OPTIMIZERS.register("adamw")
@dataclass(kw_only=True)
class AdamW(_AdamOptions):
    """Adam with decoupled weight decay."""

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """torch.optim.AdamW."""
        import torch

        return partial(torch.optim.AdamW, **self.arguments())


@OPTIMIZERS.register("lbfgs")
@dataclass(kw_only=True)
class LBFGS(OptimizerRecipe):
    """Limited-memory BFGS on the whole training set: one step is up to ``max_iter`` of its iterations."""

    full_batch: ClassVar[bool] = True
    why_full_precision: ClassVar[str] = "whose line search compares losses that differ by less than rounding"
    why_uncompiled: ClassVar[str] = ""

    lr: float = option(above=0)
    max_iter: int = option(at_least=1)
    history_size: int = option(at_least=1)
    line_search: bool = option()

    def build(self, problem: Problem) -> torch.optim.Optimizer:
        """torch.optim.LBFGS over all trainable parameters."""
        import torch

        return torch.optim.LBFGS(
            trainable(problem),
            lr=self.lr,
            max_iter=self.max_iter,
            history_size=self.history_size,
            line_search_fn="strong_wolfe" if self.line_search else None,
        )


def trainable(problem: Problem) -> list[torch.nn.Parameter]:
    """The parameters that take part in training."""
    return [p for p in problem.model.parameters() if p.requires_grad]


def named_parameters(problem: Problem) -> list[tuple[str, Tensor]]:
    """The same with their names."""
    return [(name, p) for name, p in problem.model.named_parameters() if p.requires_grad]
