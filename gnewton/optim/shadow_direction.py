"""The direction u of the step, proposed by any first-order torch optimizer."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import refuse_sparse
from gnewton.optim.finite_step import all_finite
from gnewton.optim.inner_optimizers import (
    DecayKind,
    add_coupled,
    add_decay,
    add_decoupled,
    advance,
    buffers,
    coupled_decay,
    decay_kind,
    fresh_parts,
    inner_groups,
    parts,
    readable,
    restore,
    stepped,
    weight,
)
from gnewton.partition import Partition

NamedTensors = list[tuple[str, Tensor]]
DirectionFactory = Callable[[NamedTensors], torch.optim.Optimizer]

_REFUSED = {
    "LBFGS": "it needs a closure; must be an optimizer that steps from one gradient",
    "SparseAdam": "it takes sparse gradients only; must be an optimizer of dense ones",
    "Adafactor": "its step depends on the size of the parameters, which it does not see",
    "ASGD": "its step shrinks the parameters, which it does not see",
}


class ShadowDirection:
    """An optimizer that runs on shadow parameters at zero; the step that it would have subtracted is u.

    The shadows start every step at zero, so u = −(shadow after the step) has no cancellation error, at any
    scale of the parameters. The inner optimizer cannot apply weight decay to shadows, so this class adds it
    exactly: a coupled decay to the gradient, a decoupled one to u (:mod:`gnewton.optim.inner_optimizers`).

    Args:
        parameters: (name, parameter) pairs whose ``.grad`` feeds the direction.
        factory: builds the inner optimizer from (name, tensor) pairs, as every torch optimizer takes them:
            ``functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9)``. The scale of its learning rate does
            not matter: the rates of GroupedNewton cancel it.
        maximize: whether the objective is maximised; u then points down the objective, so that θ − u still
            improves it. The inner optimizer's own ``maximize`` must be the same, or off.

    Raises:
        InputError: for an inner optimizer that needs a closure, sparse gradients or the parameters
            themselves, one with weight decay of unknown kind, or one that maximises on its own.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, Tensor]], factory: DirectionFactory, *, maximize: bool = False
    ) -> None:
        named = list(parameters)
        self._names = [name for name, _ in named]
        self._factory = factory
        self._parameters = [p for _, p in named]
        self._shadows = [torch.zeros_like(p, requires_grad=True) for p in self._parameters]
        self._of_shadow = dict(zip(self._shadows, self._parameters, strict=True))
        self._maximize = maximize
        self.inner = factory([(name, shadow) for (name, _), shadow in zip(named, self._shadows, strict=True)])
        if not isinstance(self.inner, torch.optim.Optimizer):
            kind = type(self.inner).__name__
            raise InputError(f"direction: must build a torch optimizer, not a <{kind}>")
        self._start = copy.deepcopy(self.inner.state_dict())
        self._steps = 0  # since the inner optimizer was in its first state
        numbers = {p: i for i, (_, group) in enumerate(self._inner_groups()) for p in group["params"]}
        self._inner_group = [numbers.get(shadow, -1) for shadow in self._shadows]
        self._weights: tuple[list[float], list[float]] = ([], [])  # by inner group, and by parameter
        reason = _REFUSED.get(type(self.inner).__name__)
        if reason is not None:
            raise InputError(f"direction={type(self.inner).__name__}: {reason}")
        for optimizer, group in self._inner_groups():
            if group.get("maximize", False) and not maximize:
                raise InputError("direction maximize=True: set maximize=True of GroupedNewton as well")
            if group.get("weight_decay"):
                decay_kind(optimizer, group)

    def update(self) -> list[Tensor]:
        """Advance the inner optimizer by one step and return u, one tensor per parameter, pointing uphill.

        The tensors are valid until the next call and must not be written to. The direction of a parameter
        without gradient is zero.
        """
        return self.advance(fresh=False)[0]

    @torch.no_grad()
    def advance(self, *, fresh: bool) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`update`; with ``fresh`` also v, what this gradient adds to u.

        Returns:
            u and v. Without ``fresh``, or for a method whose v is not known, v is u.
        """
        refuse_sparse(self._of_shadow.values())
        for shadow, parameter in self._of_shadow.items():
            shadow.grad = parameter.grad
        for optimizer, group in self._inner_groups():
            self._feed(optimizer, group)
        for part in parts(self.inner):
            if hasattr(part, "keeps_fresh"):
                part.keeps_fresh = fresh
        step = self._step()
        self._steps += 1
        newest = self._fresh(step) if fresh else step
        for shadow in self._shadows:
            shadow.grad = None
        return step, newest

    @property
    def weights(self) -> list[float]:
        """w = Σ_k w_k of each parameter: the number of steps along v that a step along u is worth.

        The list is the same object until a weight changes; it must not be written to.
        """
        by_group = [weight(optimizer, group, self._steps) for optimizer, group in self._inner_groups()]
        if by_group != self._weights[0] or not self._weights[1]:
            padded = [*by_group, 1.0]  # −1: the parameters in no group
            self._weights = by_group, [padded[i] for i in self._inner_group]
        return self._weights[1]

    def kinds(self, partition: Partition) -> list[int]:
        """The number of the part of the inner optimizer that steps most numbers of each group."""
        shadows = dict(zip(self._names, self._shadows, strict=True))
        part_of = {
            shadow: number
            for number, part in enumerate(parts(self.inner))
            for group in part.param_groups
            for shadow in group["params"]
        }
        kinds = []
        for group in partition:
            numbers = {name: shadows[name].numel() for name in group.parameters}
            for piece in group.slices:
                whole = shadows[piece.parameter]
                numbers[piece.parameter] = len(piece) * (whole.numel() // whole.shape[piece.axis])
            counts = Counter[int]()
            for name, count in numbers.items():
                counts[part_of.get(shadows[name], 0)] += count
            kinds.append(counts.most_common(1)[0][0])
        return kinds

    def quadratic_decay(self) -> list[float]:
        """wd of the term (wd/2)‖θ‖² that a coupled decay adds to the objective, for each parameter; 0: none.

        u is made from the gradient of an objective with this term, so the summary must include it.
        """
        decay = coupled_decay(self._inner_groups())
        return [decay.get(shadow, 0.0) for shadow in self._shadows]

    def is_finite(self) -> bool:
        """Whether all parts of the last u that enter the next one are finite; waits for the device."""
        kept: list[Tensor] = []
        for part in stepped(self.inner):
            kept += buffers(part) if readable(part) else _shadows_of(part)
        return bool(all_finite(kept))

    def restart(self) -> None:
        """Reset the inner optimizer to its first state, but for random streams; the current u stays."""
        streams = {part: part.stream for part in parts(self.inner) if hasattr(part, "stream")}
        self.inner.load_state_dict(copy.deepcopy(self._start))
        for part, position in streams.items():
            part.stream = position
        self._steps = 0

    def extended(self, parameters: Iterable[tuple[str, Tensor]]) -> ShadowDirection:
        """The same method on more parameters, as the factory builds it for all of them.

        It keeps the state of each old parameter; any other state of an optimizer, such as K-FAC's factors,
        starts anew.
        """
        named = [*zip(self._names, self._parameters, strict=True), *parameters]
        grown = ShadowDirection(named, self._factory, maximize=self._maximize)
        grown._steps = self._steps
        states = {shadow: state for part in parts(self.inner) for shadow, state in part.state.items()}
        before = dict(zip(grown._shadows, self._shadows, strict=False))
        for optimizer, group in grown._inner_groups():
            for shadow in group["params"]:
                if before.get(shadow) in states:
                    optimizer.state[shadow] = states[before[shadow]]
        return grown

    def forget_gradients(self) -> None:
        """Discard what the inner optimizer gathered from gradients since the last step."""
        for part in parts(self.inner):
            if hasattr(part, "forget_gradients"):
                part.forget_gradients()

    def close(self) -> None:
        """Release the model, for inner optimizers that refer to it."""
        for part in parts(self.inner):
            if hasattr(part, "close"):
                part.close()

    def state_dict(self) -> dict[str, Any]:
        """The state of the inner optimizer, such as momentum buffers."""
        return self.inner.state_dict()

    @property
    def steps(self) -> int:
        """Number of steps since the inner optimizer was in its first state."""
        return self._steps

    def load_state_dict(self, state: dict[str, Any], steps: int = 0) -> None:
        """Restore the value of :meth:`state_dict`, bit for bit, and :attr:`steps`."""
        restore(self.inner, state)
        self._steps = steps

    def _step(self) -> list[Tensor]:
        """u of one step of each part.

        It is read off where the part allows it, which takes half of the memory traffic; else the shadows move
        from zero.
        """
        steps: dict[Tensor, Tensor] = {}
        for part in stepped(self.inner):
            if readable(part):
                steps |= advance(part)
                continue
            shadows = _shadows_of(part)
            torch._foreach_zero_(shadows)
            part.step()
            torch._foreach_neg_(shadows)
            for optimizer, group in inner_groups(part):
                self._decay(optimizer, group)
            steps |= zip(shadows, shadows, strict=True)
        without = [shadow for shadow in self._shadows if shadow not in steps]
        if without:
            torch._foreach_zero_(without)
        return [steps.get(shadow, shadow).detach() for shadow in self._shadows]

    def _fresh(self, step: list[Tensor]) -> list[Tensor]:
        """v of each parameter, right after the step; u if v is not known."""
        known: dict[Tensor, Tensor] = {}
        gradients = {shadow: shadow.grad for shadow in self._shadows if shadow.grad is not None}
        for optimizer, group in self._inner_groups():
            new = fresh_parts(optimizer, group, gradients)
            if new is not None:
                known |= add_decay(optimizer, group, new, self._of_shadow)
        return [known.get(shadow, u) for shadow, u in zip(self._shadows, step, strict=True)]

    def _inner_groups(self) -> list[tuple[torch.optim.Optimizer, dict[str, Any]]]:
        return inner_groups(self.inner)

    def _feed(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        """Negate the gradients if the inner optimizer does not, and add a coupled decay."""
        shadows = [shadow for shadow in group["params"] if shadow.grad is not None]
        if not shadows:
            return
        maximizes = bool(group.get("maximize", False))
        if self._maximize and not maximizes:
            for shadow in shadows:
                shadow.grad = -shadow.grad
        decay = group.get("weight_decay")
        if decay and decay_kind(optimizer, group) is DecayKind.COUPLED:
            gradients = [shadow.grad for shadow in shadows]
            parameters = [self._of_shadow[shadow] for shadow in shadows]
            fed = add_coupled(gradients, parameters, float(decay), maximizes)
            for shadow, gradient in zip(shadows, fed, strict=True):
                shadow.grad = gradient

    def _decay(self, optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
        """Add a decoupled decay to u; parameters without gradient neither step nor decay."""
        decay = group.get("weight_decay")
        if not decay or decay_kind(optimizer, group) is not DecayKind.DECOUPLED:
            return
        shadows = [shadow for shadow in group["params"] if shadow.grad is not None]
        if shadows:
            parameters = [self._of_shadow[shadow] for shadow in shadows]
            add_decoupled(shadows, parameters, float(group["lr"]) * float(decay))


def _shadows_of(inner: torch.optim.Optimizer) -> list[Tensor]:
    return [shadow for group in inner.param_groups for shadow in group["params"]]
