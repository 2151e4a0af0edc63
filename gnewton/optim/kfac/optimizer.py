"""The K-FAC optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gnewton.arguments import check_options, explained
from gnewton.errors import InputError
from gnewton.optim.bound_optimizer import BoundOptimizer, evaluated, refuse_sparse
from gnewton.optim.grouping import Trained, check_one_device, trainable
from gnewton.optim.hyperparameters import KFACHyperparameters
from gnewton.optim.kfac.capture import Capture
from gnewton.optim.kfac.kronecker_blocks import Layer, find_layers
from gnewton.optim.kfac.likelihoods import LabelStream, Sampler, sampler
from gnewton.optim.kfac.preconditioner import (
    Corrected,
    DenseGradient,
    Eigen,
    Inverses,
    LayerGradient,
    Preconditioner,
    refresh_inverses,
)
from gnewton.optim.kfac.statistics import Factors, moments
from gnewton.wrappers import is_compiled, named_parameters, unwrapped

_KINDS: dict[str, type[Inverses] | type[Eigen]] = {"inverse": Inverses, "eigen": Eigen, "ekfac": Corrected}


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
        fisher: "true" draws labels from the model's own predictions, "empirical" takes the gradients of the
            loss itself, which must then be a mean over samples (in pieces: weighted by their share).
        likelihood: the loss of the training: "categorical" (cross-entropy), "categorical_last" (with
            the classes along the last axis), "gaussian" (mean
            squared error), "bernoulli" (binary cross-entropy with logits), or a function that draws
            (:mod:`gnewton.optim.kfac.likelihoods`). Not used by the empirical Fisher.
        preconditioner: "inverse" as above, "eigen" (λ added to the products of eigenvalues) or "ekfac".
        start: start of the averages, the "first" statistics or the "identity".
        scaling: "standard", or "reference": with S positions, A is divided and G multiplied by S².
        seed: seed of the drawn labels; None: torch's initial seed. Torch's own random stream is not touched.
        params: (name, tensor) pairs to step instead of the parameters of these names; their ``.grad`` is
            preconditioned.

    Raises:
        InputError: for a value out of range, an unknown name, or a model without a layer to treat.
    """

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
        fisher: str = "true",
        likelihood: str | Sampler = "categorical",
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
            fisher=fisher,
            preconditioner=preconditioner,
            start=start,
            scaling=scaling,
        )
        draw = sampler(likelihood)
        named = _targets(model, params)
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
        self._decay, self._identity = decay, start == "identity"
        self._statistics_period, self._inverse_period = statistics_period, inverse_period
        self.keeps_fresh, self.fresh = False, dict[Tensor, Tensor]()
        self._empirical, self._reference_scaling = fisher == "empirical", scaling == "reference"
        self._kind = preconditioner
        self._draws = LabelStream(seed)
        self._steps = self._next_statistics = self._next_inverses = 0
        self._factors: dict[Layer, Factors] = {}
        self._preconditioners: dict[Layer, Preconditioner] = {}
        self._capture = Capture(model, self._layers, None if self._empirical else draw, self._draws.next)
        self._built = True

    @property
    def layers(self) -> list[str]:
        """Names of the treated layers, in the order of the model."""
        return [layer.name for layer in self._layers]

    @property
    def factors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The running averages (A, G) of every layer seen so far, by its name, in the order of the model."""
        known = self._factors
        return {layer.name: (known[layer].a, known[layer].g) for layer in self._layers if layer in known}

    def close(self) -> None:
        """Remove the hooks from the model; the optimizer cannot be used afterwards."""
        self._capture.close()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Reset all gradients, and the statistics of the empirical Fisher that were made from them."""
        self._capture.forget_gradients()
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
        self._trained.check()
        loss = evaluated(closure)
        refuse_sparse(self.param_groups[0]["params"])
        self._take_statistics()
        self._refresh()
        moved, vectors = self._directions()
        if self.keeps_fresh:
            lr = float(self.param_groups[0]["lr"])
            self.fresh = {p: lr * v for p, v in zip(moved, vectors, strict=True)}
        move(moved, vectors, self.param_groups[0], self.state)
        self._capture.clear()
        self._steps += 1
        self._capture.due = self._steps >= self._next_statistics
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Torch's state plus factors, inverses, counters and the position of the random stream."""
        state = super().state_dict()
        state["kfac"] = {
            "preconditioner": self._kind,
            "seed": self._draws.seed,
            "draws": self._draws.count,
            "steps": self._steps,
            "next_statistics": self._next_statistics,
            "next_inverses": self._next_inverses,
            "factors": {layer.name: factors.state() for layer, factors in self._factors.items()},
            "preconditioners": {layer.name: kept.state() for layer, kept in self._preconditioners.items()},
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
        known = {layer.name: layer for layer in self._layers}
        for name, tensors in saved["factors"].items():
            sizes = [len(tensors[key]) for key in ("a", "g")]
            if name not in known or sizes != [known[name].inputs, known[name].outputs]:
                raise InputError(f"state_dict: the model has no layer '{name}' with factors of sizes {sizes}")
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "kfac"})
        self._draws.seed, self._draws.count = saved["seed"], saved["draws"]
        self._steps = saved["steps"]
        self._next_statistics, self._next_inverses = saved["next_statistics"], saved["next_inverses"]
        self._factors = {known[name]: self._new_factors(known[name]) for name in saved["factors"]}
        self._preconditioners = {
            known[name]: self._new_kind(known[name]) for name in saved["preconditioners"]
        }
        for layer, factors in self._factors.items():
            factors.load(self._copies(saved["factors"][layer.name]))
        for layer, preconditioner in self._preconditioners.items():
            preconditioner.load(self._copies(saved["preconditioners"][layer.name]))
        self._capture.clear()
        self._capture.due = self._steps >= self._next_statistics
        self._capture.bases = {layer: kept.basis for layer, kept in self._preconditioners.items()}

    def _copies(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Copies of tensors on the device of the model."""
        device = self._layers[0].weight.device
        return {key: value.to(device, copy=True) for key, value in tensors.items()}

    def _new_factors(self, layer: Layer) -> Factors:
        return Factors(layer, self._decay, self._identity)

    def _new_kind(self, layer: Layer) -> Preconditioner:
        return _KINDS[self._kind](layer.bias is not None)

    def _take_statistics(self) -> None:
        """Add the statistics of the passes of this step to the averages."""
        capture = self._capture
        if not capture.sums:
            return
        scale = float(capture.samples) if self._empirical else 1.0
        sums = {layer: capture.sums[layer] for layer in self._layers if layer in capture.sums}
        means = moments(sums, capture.samples, scale, self._reference_scaling)
        for layer, moment in means.items():
            if layer not in self._factors:
                self._factors[layer] = self._new_factors(layer)
            finite = self._factors[layer].average(moment)
            if layer in self._preconditioners:
                self._preconditioners[layer].observe(moment.squares, finite, self._decay)
        self._next_statistics = self._steps + self._statistics_period

    def _refresh(self) -> None:
        """Refresh the preconditioners: of all layers when due, of a new layer at once."""
        due = self._steps >= self._next_inverses
        layers = [layer for layer in self._factors if due or layer not in self._preconditioners]
        if not self._factors:
            raise InputError(
                "step: no statistics yet; the model must run forward in training mode, with gradients, "
                "before the first step"
            )
        if not layers:
            return
        for layer in layers:
            self._preconditioners.setdefault(layer, self._new_kind(layer))
        preconditioners = [self._preconditioners[layer] for layer in layers]
        factors = [self._factors[layer] for layer in layers]
        if self._kind == "inverse":
            refresh_inverses(preconditioners, factors, float(self.param_groups[0]["damping"]))  # type: ignore[arg-type]
        else:
            for preconditioner, factor in zip(preconditioners, factors, strict=True):
                preconditioner.refresh(factor)  # type: ignore[attr-defined]
        if due:
            self._next_inverses = self._steps + self._inverse_period
        self._capture.bases = {layer: self._preconditioners[layer].basis for layer in self._preconditioners}

    def _directions(self) -> tuple[list[Tensor], list[Tensor]]:
        """The parameters that move, with ν V or the raw gradient of each."""
        group = self.param_groups[0]
        damping = float(group["damping"])
        raw = [p for p in self._others if p.grad is not None]
        moved: list[Tensor] = []
        vectors: list[Tensor] = []
        products: list[Tensor] = []
        for layer, (weight, bias) in self._treated.items():
            if weight.grad is None or layer not in self._preconditioners:
                raw += [p for p in (weight, bias) if p is not None and p.grad is not None]
                continue
            v_weight, v_bias = self._preconditioners[layer].apply(self._gradient(layer), damping)
            for p, v in ((weight, v_weight), (bias, v_bias)):
                if p is not None and v is not None and p.grad is not None:
                    moved.append(p)
                    vectors.append(v.view_as(p).to(p.dtype))
                    products.append(v.flatten() @ p.grad.flatten().to(v.dtype))
        clip(vectors, products, group)
        return [*moved, *raw], [*vectors, *(p.grad for p in raw if p.grad is not None)]

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


def _targets(model: nn.Module, params: Iterable[tuple[str, Tensor]] | None) -> dict[str, Tensor]:
    """The tensors to step, by the name of the parameter of the model that each is or replaces."""
    if params is None:
        named = trainable(model)
    else:
        parameters, named = named_parameters(model), dict(params)
        for name, tensor in named.items():
            if name not in parameters or parameters[name].shape != tensor.shape:
                raise InputError(
                    f"params: the model has no parameter '{name}' of shape {tuple(tensor.shape)}"
                )
    if not named:
        raise InputError("model: it has no trainable parameters")
    check_one_device(named.values())
    return named


def clip(vectors: list[Tensor], products: list[Tensor], group: Mapping[str, Any]) -> None:
    """V ← νV in place, ν = min(1, √(κ/(lr² Σ ⟨V, ∇W⟩))); without κ, no change.

    Args:
        vectors: V.
        products: ⟨V, ∇W⟩ of each, scalars.
        group: ``lr`` and ``kl_clip``, κ or None.
    """
    if group["kl_clip"] is None or not products:
        return
    size = torch.stack(products).sum().clamp_min(0).mul_(float(group["lr"]) ** 2)
    factor = (float(group["kl_clip"]) / size).sqrt_().clamp_max(1.0)
    torch._foreach_mul_(vectors, factor)


def move(
    parameters: list[Tensor],
    vectors: list[Tensor],
    group: Mapping[str, Any],
    state: MutableMapping[Tensor, Any],
) -> None:
    """m ← μ m + V, θ ← (1 − lr·wd) θ − lr m.

    Args:
        parameters: θ, changed in place.
        vectors: V of each.
        group: ``lr``, ``momentum`` and ``weight_decay``.
        state: state of the optimizer, with m as ``momentum_buffer``.
    """
    if not parameters:
        return
    lr, momentum = float(group["lr"]), float(group["momentum"])
    if momentum > 0:
        fresh = [p for p in parameters if "momentum_buffer" not in state[p]]
        for p in fresh:
            state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, vectors)
        vectors = buffers
    if group["weight_decay"] > 0:
        torch._foreach_mul_(parameters, 1 - lr * float(group["weight_decay"]))
    torch._foreach_add_(parameters, vectors, alpha=-lr)
