"""The K-FAC optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gnewton.arguments import check_options, explained
from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import BoundOptimizer, evaluated, refuse_sparse
from gnewton.optim.grouping import Trained, named_targets
from gnewton.optim.hyperparameters import KFACHyperparameters
from gnewton.optim.inner_optimizers import hooked
from gnewton.optim.kfac.capture import Capture
from gnewton.optim.kfac.kronecker_blocks import Layer, find_layers
from gnewton.optim.kfac.kronecker_curvature import KroneckerCurvature
from gnewton.optim.kfac.layer_gradient import DenseGradient, LayerGradient, LayerStep, StepByRows
from gnewton.optim.kfac.likelihoods import LabelStream, Sampler, sampler
from gnewton.wrappers import is_compiled, named_parameters, unwrapped

SQUARE_DECAY, SQUARE_FLOOR = 0.999, 1e-8
"""β_2 and ε of Adam, for parameters without preconditioner (:attr:`KFAC.unreached_scale`)."""


class KFAC(BoundOptimizer):
    """θ ← (1 − lr·wd) θ − lr m, m ← μ m + ν V, where V = (G + √λ/π I)⁻¹ ∇W (A + π√λ I)⁻¹ in each layer.

    A and G are running averages of the second moments of the inputs of a Linear or Conv layer and of the
    gradients with respect to its outputs, and ν = min(1, √(κ/(lr² Σ_layers ⟨V, ∇W⟩))) bounds the change of
    the model's predictions (Martens & Grosse, arXiv 1503.05671; Grosse & Martens, arXiv 1602.01407; EKFAC:
    George et al., arXiv 1806.03884). docs/optimizers.md has every formula and lists the layers that are not
    treated; their parameters take the raw gradient and do not enter ν.

    The optimizer watches the model by hooks: run it forward in training mode, call ``backward()`` on the
    mean loss, then :meth:`step`. Every training pass between two steps feeds the statistics, so batches may
    come in pieces. Several processes of torch.distributed join their statistics by one all-reduce.

    Example::

        optimizer = KFAC(model, lr=3e-3)
        for inputs, targets in loader:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()

    Args:
        model: the network, also inside DistributedDataParallel; it returns one tensor with the samples along
            the first axis, for inputs of any form.
        lr: learning rate, > 0.
        momentum: μ in [0, 1).
        weight_decay: wd >= 0, decoupled from the gradient.
        damping: λ > 0.
        kl_clip: κ > 0; None: no clip.
        decay: factor on the old averages of the statistics, in [0, 1).
        statistics_period: T_cov, number of steps between two updates of the averages, >= 1.
        inverse_period: T_inv, number of steps between two updates of the inverses, >= 1.
        early_inverses: whether the inverses are updated more often at the start, where the factors change
            fast: with the second statistics, and whenever their age has doubled since, until it is T_inv.
        fisher: "true" draws labels from the model's own predictions, "empirical" takes the gradients of the
            loss itself, which must then be a mean over samples (in pieces: weighted by their share). "auto"
            makes do with any network and loop: "true" while the model allows it and has a ``likelihood``,
            else "empirical"; passes in evaluation mode and calls of parts of the model count if there are no
            others; a layer that none of them reaches takes the raw gradient, and a factor without an inverse
            leaves the last one in force.
        likelihood: the loss of the training: "categorical" (cross-entropy), "categorical_last" (with
            the classes along the last axis), "gaussian" (mean
            squared error), "bernoulli" (binary cross-entropy with logits), or a function that draws
            (:mod:`gnewton.optim.kfac.likelihoods`). Not used by the empirical Fisher.
        preconditioner: "inverse" as above, "low_rank" (the same with the leading eigenvectors alone,
            :mod:`gnewton.optim.kfac.low_rank`), "eigen" (λ added to the products of eigenvalues) or "ekfac".
        start: start of the averages, the "first" statistics or the "identity".
        scaling: "standard", or "reference": with S positions, A is divided and G multiplied by S².
        seed: seed of the drawn labels; None: torch's initial seed. Torch's own random stream is not touched.
        params: (name, tensor) pairs to step instead of the parameters of these names; their ``.grad`` is
            preconditioned.

    Raises:
        InputError: for a value out of range, an unknown name, or a model without a layer to treat.
    """

    unreached_scale: float | None = None
    """Learning rate at which a parameter without preconditioner takes its gradient over its root mean square,
    before the momentum; None: it takes the raw gradient. Set by
    :func:`~gnewton.optim.kfac.direction.kfac_direction`."""

    why_fixed: ClassVar[str] = "the parameters are those of the model"

    @explained(loss_fn="the loss is what backward() is called on; likelihood= names its kind")
    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 3e-3,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        damping: float = 0.03,
        kl_clip: float | None = 0.01,
        decay: float = 0.95,
        statistics_period: int = 10,
        inverse_period: int = 100,
        early_inverses: bool = False,
        fisher: str = "true",
        likelihood: str | Sampler | None = "categorical",
        preconditioner: str = "inverse",
        start: str = "first",
        scaling: str = "standard",
        seed: int | None = None,
        params: Iterable[tuple[str, Tensor]] | None = None,
    ) -> None:
        network = unwrapped(model)
        if is_compiled(model):
            raise InputError(
                "model: it is compiled, at least in part, and KFAC watches single layers, which compiled "
                "code does not have; pass and train the model itself"
            )
        model = network
        check_options(
            KFACHyperparameters,
            lr=lr,
            momentum=momentum,
            weight_decay=weight_decay,
            damping=damping,
            kl_clip=kl_clip,
            decay=decay,
            statistics_period=statistics_period,
            inverse_period=inverse_period,
            early_inverses=early_inverses,
            fisher=fisher,
            preconditioner=preconditioner,
            start=start,
            scaling=scaling,
        )
        draw = None if likelihood is None else sampler(likelihood)
        if draw is None and fisher == "true":
            raise InputError("likelihood=None: labels are drawn from it; must be given, or fisher=empirical")
        draw = None if fisher == "empirical" else draw
        named = named_targets(model, params)
        super().__init__(
            list(named.items()),
            {
                "lr": lr,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "decoupled_weight_decay": True,
                "damping": damping,
                "kl_clip": kl_clip,
            },
        )
        parameters = named_parameters(model)
        self._trained = Trained(
            model,
            {name: parameters[name] for name in named if parameters[name].requires_grad},
            holder="KFAC",
            missing=None if params is not None else "it does not hold {}; freeze it or build a new KFAC",
        )
        self._layers = find_layers(model, list(named))
        if not self._layers:
            raise InputError("model: it has no trainable Linear or Conv layer that K-FAC can treat")
        self._treated = {
            layer: (named[layer.weight_name], named[layer.bias_name] if layer.bias_name is not None else None)
            for layer in self._layers
        }
        taken = {id(p) for pair in self._treated.values() for p in pair}
        self._others = [p for p in named.values() if id(p) not in taken]
        self.keeps_fresh, self.fresh = False, dict[Tensor, Tensor]()
        self._kind = preconditioner
        self._draws = LabelStream(seed)
        self._capture = Capture(model, self._layers, draw, self._draws.next, lenient=fisher == "auto")
        self._curvature = KroneckerCurvature(
            self._layers,
            self._capture,
            preconditioner,
            decay=decay,
            identity=start == "identity",
            statistics_period=statistics_period,
            inverse_period=inverse_period,
            early_inverses=early_inverses,
            reference_scaling=scaling == "reference",
        )
        self._built = True

    @property
    def layers(self) -> list[str]:
        """Names of the treated layers, in the order of the model."""
        return [layer.name for layer in self._layers]

    @property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The running averages (A, G) of every layer seen so far, by its name, in the order of the model."""
        known = self._curvature.factors
        return {layer.name: (known[layer].a, known[layer].g) for layer in self._layers if layer in known}

    @property
    def stream(self) -> tuple[int, int]:
        """The seed of the drawn labels, and the number of draws so far."""
        return self._draws.seed, self._draws.count

    @stream.setter
    def stream(self, position: tuple[int, int]) -> None:
        self._draws.seed, self._draws.count = position

    def close(self) -> None:
        """Remove the hooks from the model; the optimizer cannot be used afterwards."""
        self._capture.close()

    def forget_gradients(self) -> None:
        """Discard the statistics of the empirical Fisher that are not in the averages yet."""
        self._capture.forget_gradients()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and the statistics of the empirical Fisher that were made from them."""
        self.forget_gradients()
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Make one step from the gradients in ``.grad``.

        Args:
            closure: recomputes the loss with gradients; optional, as in every torch optimizer.

        Returns:
            The value of ``closure``, or None.

        Raises:
            InputError: for sparse gradients, if the model never ran forward in training mode, or if it trains
                other parameters than when the optimizer was built.
        """
        loss = evaluated(closure)
        steps = self.advance()
        if steps:
            group, parameters = self.param_groups[0], list(steps)
            lr, decay = float(group["lr"]), float(group["weight_decay"])
            if decay > 0:
                torch._foreach_mul_(parameters, 1 - lr * decay)
            torch._foreach_add_(parameters, list(steps.values()), alpha=-lr)
        return loss

    @property
    def readable(self) -> bool:
        """Whether a step subtracts exactly what :meth:`advance` returns."""
        group = self.param_groups[0]
        return group["lr"] == 1 and group["weight_decay"] == 0 and not hooked(self)

    @torch.no_grad()
    def advance(self) -> dict[Tensor, Tensor]:
        """Everything in a step but the motion of the parameters.

        Returns:
            m of each parameter with a gradient; not to be written to.

        Raises:
            InputError: as for :meth:`step`.
        """
        self._trained.check()
        refuse_sparse(self.param_groups[0]["params"])
        gradients = {
            layer: (weight.grad, bias.grad if bias is not None else None)
            for layer, (weight, bias) in self._treated.items()
            if weight.grad is not None and (bias is None or bias.grad is not None)
        }
        self._curvature.update(float(self.param_groups[0]["damping"]), gradients)
        steps, raw = self._layer_steps()
        self._clip(steps)
        averaged = self._average(steps, raw)
        self._curvature.end_step()
        return averaged

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus factors, inverses, counters and the position of the random stream."""
        state = super().state_dict()
        seed, draws = self.stream
        state["kfac"] = {
            "preconditioner": self._kind,
            "seed": seed,
            "draws": draws,
            **self._curvature.state(),
        }
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the value of :meth:`state_dict`.

        Raises:
            InputError: if the state belongs to another optimizer, model or kind of preconditioner.
        """
        saved = state_dict.get("kfac")
        if saved is None:
            raise InputError("state_dict: it was not written by KFAC")
        if saved["preconditioner"] != self._kind:
            raise InputError(f"state_dict: its preconditioner is {saved['preconditioner']}, not {self._kind}")
        self._curvature.check(saved)
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "kfac"})
        self.stream = saved["seed"], saved["draws"]
        self._curvature.load(saved)

    def _layer_steps(self) -> tuple[dict[Layer, LayerStep], list[Tensor]]:
        """V of each treated layer, and the parameters that take the raw gradient."""
        damping, preconditioners = float(self.param_groups[0]["damping"]), self._curvature.preconditioners
        raw = [p for p in self._others if p.grad is not None]
        steps: dict[Layer, LayerStep] = {}
        for layer, (weight, bias) in self._treated.items():
            if weight.grad is None or layer not in preconditioners:
                raw += [p for p in (weight, bias) if p is not None and p.grad is not None]
            else:
                steps[layer] = preconditioners[layer].apply(self._gradient(layer), damping)
        return steps, raw

    def _clip(self, steps: Mapping[Layer, LayerStep]) -> None:
        """V ← νV, ν = min(1, √(κ/(lr² Σ ⟨V, ∇W⟩))); without κ, no change."""
        group = self.param_groups[0]
        if group["kl_clip"] is None or not steps:
            return
        products = [
            step.along(*(None if p is None else p.grad for p in self._treated[layer]))
            for layer, step in steps.items()
        ]
        size = torch.stack(products).sum().clamp_min(0).mul_(float(group["lr"]) ** 2)
        factor = (float(group["kl_clip"]) / size).sqrt_().clamp_max(1.0)
        for step in steps.values():
            step.scale(factor)

    def _average(self, steps: Mapping[Layer, LayerStep], raw: list[Tensor]) -> dict[Tensor, Tensor]:
        """m ← μ m + V, and m of each parameter; a V by rows is not multiplied out on its own."""
        group = self.param_groups[0]
        momentum = float(group["momentum"])
        averaged: dict[Tensor, Tensor] = {}
        new = self._unreached(raw)
        for layer, step in steps.items():
            weight, bias = self._treated[layer]
            if (
                momentum > 0
                and not self.keeps_fresh
                and isinstance(step, StepByRows)
                and (buffers := self._buffers(weight, bias, step)) is not None
            ):
                step.average_into(*buffers, momentum)
                averaged |= {p: self.state[p]["momentum_buffer"] for p in (weight, bias) if p is not None}
                continue
            for p, v in zip((weight, bias), step.parts(), strict=True):
                if p is not None and v is not None and p.grad is not None:
                    new[p] = v.view_as(p).to(p.dtype)
        lr = float(group["lr"])
        self.fresh = {p: v if lr == 1 else lr * v for p, v in new.items()} if self.keeps_fresh else {}
        if momentum == 0:
            return averaged | new
        if new:
            held = [self._buffer(p) for p in new]
            torch._foreach_mul_(held, momentum)
            torch._foreach_add_(held, list(new.values()))
            averaged |= dict(zip(new, held, strict=True))
        return averaged

    def _unreached(self, parameters: list[Tensor]) -> dict[Tensor, Tensor]:
        """V of the parameters without preconditioner: their gradients, perhaps over the root mean square."""
        gradients = {p: p.grad for p in parameters if p.grad is not None}
        if self.unreached_scale is None:
            return gradients
        new = {}
        for p, gradient in gradients.items():
            state = self.state[p]
            count = state["square_count"] = state.get("square_count", 0) + 1
            square = self._buffer(p, "square")
            square.mul_(SQUARE_DECAY).addcmul_(gradient, gradient, value=1 - SQUARE_DECAY)
            root = (square / (1 - SQUARE_DECAY**count)).sqrt_().add_(SQUARE_FLOOR)
            new[p] = (gradient / root).mul_(self.unreached_scale)
        return new

    def _buffer(self, p: Tensor, name: str = "momentum_buffer") -> Tensor:
        """m of a parameter, or another of its averages, zero at first."""
        if name not in self.state[p]:
            self.state[p][name] = torch.zeros_like(p)
        buffer: Tensor = self.state[p][name]
        return buffer

    def _buffers(
        self, weight: Tensor, bias: Tensor | None, step: StepByRows
    ) -> tuple[Tensor, Tensor | None] | None:
        """m of the weight as a matrix and that of the bias; None where products cannot be written to them."""
        held = self._buffer(weight), None if bias is None else self._buffer(bias)
        if any(m is not None and (m.dtype != step.inputs.dtype or not m.is_contiguous()) for m in held):
            return None
        return held

    def _gradient(self, layer: Layer) -> LayerGradient:
        weight, bias = self._treated[layer]
        assert weight.grad is not None
        bias_grad = bias.grad if bias is not None else None
        by_rows = self._capture.low_rank(layer, weight.grad, bias_grad)
        if by_rows is not None:
            return by_rows
        if bias is not None and bias_grad is None:
            bias_grad = torch.zeros_like(bias)
        return DenseGradient.of(weight.grad, bias_grad)
