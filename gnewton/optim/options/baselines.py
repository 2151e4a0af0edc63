"""The baselines: torch's first-order optimizers, with learning rates for single parameters, and L-BFGS."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from gnewton.errors import InputError, first_line
from gnewton.optim.options import OPTIMIZERS, OptimizerRecipe, TrainingProblem
from gnewton.options import Role, did_you_mean, listing, option, option_of, show

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gnewton.optim.shadow_direction import DirectionFactory


@dataclass(kw_only=True)
class FirstOrderRecipe(OptimizerRecipe):
    """A method whose step is proportional to the learning rate; single parameters may have their own rate."""

    why_full_precision: ClassVar[str] = ""
    why_uncompiled: ClassVar[str] = ""

    lr: float = option(0.001, help="learning rate", above=0, role=Role.RATES)
    rates: Any = option(
        None,
        help="of single parameters: {NAME or regular expression: rate, …} or a YAML file; null: lr for all",
        role=Role.PATH | Role.RATES,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Errors in ``rates`` that can be found without the model."""
        try:
            as_mapping(self.rates)
        except InputError as error:
            yield "rates", str(error)

    @abstractmethod
    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """The torch optimizer with all options; ``lr`` is the rate of parameters without their own."""

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """The torch optimizer over all trainable parameters, with one group per learning rate."""
        from gnewton.optim.grouping import trainable

        return self.method()(self._groups(list(trainable(problem.model).items())))

    def proposal(self, problem: TrainingProblem) -> DirectionFactory:
        """The same method with learning rate 1 for every parameter."""

        def unit(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
            optimizer = self.method()(self._groups(named))
            for group in optimizer.param_groups:
                group["lr"] = 1.0
            return optimizer

        return unit

    def proposal_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """The state with every learning rate set to 1."""
        return {**state, "param_groups": [{**group, "lr": 1.0} for group in state["param_groups"]]}

    def _groups(self, named: list[tuple[str, Tensor]]) -> list[dict[str, Any]]:
        """torch's groups: first the parameters at ``lr``, then those of each rate, in model order."""
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
    """Stochastic gradient descent with classical or Nesterov momentum."""

    lr: float = option_of(FirstOrderRecipe, "lr", 0.03)

    momentum: float = option(0.9, help="factor on the previous step; 0: none", at_least=0, below=1)
    dampening: float = option(
        0.0, help="share of the gradient that momentum leaves out", at_least=0, at_most=1
    )
    nesterov: bool = option(False, help="Nesterov's form of momentum")
    weight_decay: float = option(0.0, help="factor of the L2 term added to the gradient", at_least=0)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Options of momentum that have no effect without it."""
        yield from super().conflicts()
        if self.nesterov and (self.momentum == 0 or self.dampening > 0):
            yield "nesterov", "needs optimizer.momentum > 0 and optimizer.dampening=0"
        if self.dampening > 0 and self.momentum == 0:
            yield "dampening", "has no effect without optimizer.momentum > 0"

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """``torch.optim.SGD`` with these options."""
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
class _AdamRecipe(FirstOrderRecipe):
    betas: list[float] = option(
        [0.9, 0.999],
        help="decay of the averages of the gradient and of its square",
        at_least=0,
        below=1,
        length=2,
    )
    eps: float = option(1e-08, help="added to the denominator", above=0)
    weight_decay: float = option_of(SGD, "weight_decay")

    def arguments(self) -> dict[str, Any]:
        """The arguments that Adam and AdamW share."""
        first, second = self.betas
        return {
            "lr": self.lr,
            "betas": (first, second),
            "eps": self.eps,
            "weight_decay": self.weight_decay,
        }


@OPTIMIZERS.register("adam")
@dataclass(kw_only=True)
class Adam(_AdamRecipe):
    """Adam; weight decay is an L2 term of the loss."""

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """``torch.optim.Adam`` with these options."""
        import torch

        return partial(torch.optim.Adam, **self.arguments())


@OPTIMIZERS.register("adamw")
@dataclass(kw_only=True)
class AdamW(_AdamRecipe):
    """Adam with decoupled weight decay."""

    weight_decay: float = option_of(
        _AdamRecipe,
        "weight_decay",
        0.01,
        help="share of each parameter taken away per step, times the learning rate",
    )

    def method(self) -> Callable[..., torch.optim.Optimizer]:
        """``torch.optim.AdamW`` with these options."""
        import torch

        return partial(torch.optim.AdamW, **self.arguments())


@OPTIMIZERS.register("lbfgs")
@dataclass(kw_only=True)
class LBFGS(OptimizerRecipe):
    """Limited-memory BFGS on the whole training set; one step is up to ``max_iter`` iterations."""

    full_batch: ClassVar[bool] = True
    why_full_precision: ClassVar[str] = "whose line search compares losses that differ by less than rounding"
    why_unclipped: ClassVar[str] = "whose line search needs the gradient of the loss"
    why_uncompiled: ClassVar[str] = ""

    lr: float = option(1.0, help="step length, or the first trial of the line search", above=0)
    max_iter: int = option(20, help="iterations per training step", at_least=1)
    history_size: int = option(10, help="pairs of steps and gradient differences kept", at_least=1)
    line_search: bool = option(True, help="strong Wolfe line search")

    def build(self, problem: TrainingProblem) -> torch.optim.Optimizer:
        """torch.optim.LBFGS over all trainable parameters."""
        import torch

        from gnewton.optim.grouping import trainable

        return torch.optim.LBFGS(
            list(trainable(problem.model).values()),
            lr=self.lr,
            max_iter=self.max_iter,
            history_size=self.history_size,
            line_search_fn="strong_wolfe" if self.line_search else None,
        )


def read_rates(path: Path) -> dict[str, Any]:
    """The mapping from parameters to learning rates in a YAML file.

    Raises:
        InputError: if the file cannot be read or holds no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"the file cannot be read ({reason})") from error
    if not isinstance(content, dict):
        raise InputError("the file holds no mapping from parameters to learning rates")
    return content


def as_mapping(rates: object) -> dict[str, float]:
    """Checked rates by parameter name or regular expression, from a mapping, a YAML file of one, or None.

    Raises:
        InputError: naming the entry that is wrong.
    """
    if rates is None:
        return {}
    entries = read_rates(Path(rates)) if isinstance(rates, str) else rates
    if not isinstance(entries, Mapping):
        raise InputError("must be a mapping {NAME: RATE, …} or a YAML file of one")
    checked = {}
    for name, rate in entries.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < float("inf"):
            raise InputError(f"'{name}: {show(rate)}': each rate must be a finite number >= 0")
        try:
            re.compile(str(name))
        except re.error as error:
            raise InputError(f"'{name}' is neither a name nor a regular expression: {error}") from error
        checked[str(name)] = float(rate)
    return checked


def assign(rates: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """The rate of each parameter that has its own.

    A key is a parameter name, or a regular expression that is searched in the names of all parameters that
    are not keys themselves. The first expression that matches counts.

    Raises:
        InputError: for a key that applies to no parameter.
    """
    names = list(names)
    assigned = {name: rates[name] for name in names if name in rates}
    used = set(assigned)
    expressions = [key for key in rates if key not in used]
    for name in names:
        if name in assigned:
            continue
        key = next((key for key in expressions if re.search(key, name)), None)
        if key is not None:
            assigned[name] = rates[key]
            used.add(key)
    idle = [key for key in rates if key not in used]
    if idle:
        key = idle[0]
        why = (
            f"every parameter that it matches belongs to another key: {key!r}"
            if any(re.search(key, name) for name in names)
            else f"'{key}' names no parameter and matches no name{did_you_mean(key, names)}; "
            f"the model has {listing(names, 6)}"
        )
        raise InputError(f"optimizer.rates: {why}")
    return assigned
