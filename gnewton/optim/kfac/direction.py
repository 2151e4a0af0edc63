"""K-FAC's step as a direction for any network: where K-FAC has no factors, Adam's step stands in."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnewton.arguments import check_options
from gnewton.optim.hyperparameters import KFACDirectionHyperparameters
from gnewton.optim.inner_optimizers import CompositeOptimizer
from gnewton.optim.kfac.kronecker_blocks import Layer, find_layers
from gnewton.optim.kfac.likelihoods import Sampler
from gnewton.optim.kfac.optimizer import KFAC
from gnewton.optim.shadow_direction import DirectionFactory
from gnewton.wrappers import is_compiled, named_parameters, unwrapped

_DEFAULTS = KFACDirectionHyperparameters()

ADAM_SCALE = _DEFAULTS.adam_scale
"""Learning rate of Adam's step beside K-FAC's at 1. Tuned rates of the two lie about thirtyfold apart; with
this factor one common rate serves both."""

LARGEST_FACTOR = _DEFAULTS.largest_factor
"""Most rows of a Kronecker factor. One of 8,192 rows takes 256 MiB in float32, and its inverse as much."""

FACTOR_NUMBERS = 2**24
"""Numbers in the two factors of a layer that cost next to nothing: 64 MiB in float32."""

WEIGHT_SHARE = 16
"""Further numbers in the factors are worth it up to so many for each number in the weight. A classifier of
32 features into 8,000 words has 250: its factors would take more than the rest of the training."""

_LIKELIHOODS: dict[Any, str] = {
    F.cross_entropy: "categorical",
    nn.CrossEntropyLoss: "categorical",
    F.mse_loss: "gaussian",
    nn.MSELoss: "gaussian",
    F.binary_cross_entropy_with_logits: "bernoulli",
    nn.BCEWithLogitsLoss: "bernoulli",
}


def likelihood_of(loss_fn: Callable[..., Any]) -> str | None:
    """The likelihood of a loss of torch (:mod:`gnewton.optim.kfac.likelihoods`); None for any other function.

    A sum in place of the mean has another scale, and thus none of them.
    """
    options = loss_fn.keywords if isinstance(loss_fn, partial) else getattr(loss_fn, "__dict__", {})
    function = loss_fn.func if isinstance(loss_fn, partial) else loss_fn
    key = type(function) if isinstance(function, nn.Module) else function
    if options.get("reduction", "mean") != "mean" or not callable(key):
        return None
    try:
        return _LIKELIHOODS.get(key)
    except TypeError:  # a callable without a hash
        return None


def _worthwhile(model: nn.Module, names: Sequence[str], largest_factor: int) -> list[Layer]:
    """The layers among the parameters ``names`` whose factors are not too large.

    A factor has at most ``largest_factor`` rows, and both together at most :data:`FACTOR_NUMBERS` numbers,
    as many as the whole model, or :data:`WEIGHT_SHARE` times as many as the weight.
    """
    layers = find_layers(unwrapped(model), names)
    every = max(FACTOR_NUMBERS, sum(p.numel() for p in named_parameters(model).values()))
    return [
        layer
        for layer in layers
        if max(layer.inputs, layer.outputs) <= largest_factor
        and layer.inputs**2 + layer.outputs**2 <= max(every, WEIGHT_SHARE * layer.weight.numel())
    ]


def kfac_direction(
    model: nn.Module,
    *,
    largest_factor: int = LARGEST_FACTOR,
    adam_scale: float = ADAM_SCALE,
    early_inverses: bool = _DEFAULTS.early_inverses,
    fisher: str = _DEFAULTS.fisher,
    preconditioner: str = _DEFAULTS.preconditioner,
    likelihood: str | Sampler | None = None,
    **options: Any,
) -> DirectionFactory:
    """K-FAC on the layers that it treats, Adam on all other parameters: norms, embeddings, recurrent cells.

    Args:
        model: the network, which K-FAC watches by hooks.
        largest_factor: layers with a larger factor on either side are left to Adam, and so are those whose
            factors are out of proportion to weight and model.
        adam_scale: learning rate of Adam, where that of K-FAC is 1.
        early_inverses, fisher, preconditioner, likelihood: of :class:`~gnewton.optim.kfac.KFAC`, with other
            defaults.
        options: further ones of it, but for ``lr`` and ``params``.

    Returns:
        A function from (name, tensor) pairs to the optimizer, one of the two if the other has no parameter.

    Raises:
        InputError: for a value out of range.
    """
    check_options(KFACDirectionHyperparameters, largest_factor=largest_factor, adam_scale=adam_scale)

    def build(named: list[tuple[str, Tensor]]) -> torch.optim.Optimizer:
        layers = _worthwhile(model, [name for name, _ in named], largest_factor)
        treated = {name for layer in layers for name in (layer.weight_name, layer.bias_name)}
        parts: list[torch.optim.Optimizer] = []
        if layers:
            kfac = KFAC(
                model,
                lr=1.0,
                params=[pair for pair in named if pair[0] in treated],
                early_inverses=early_inverses,
                fisher=fisher,
                preconditioner=preconditioner,
                likelihood=likelihood,
                **options,
            )
            kfac.unreached_scale = adam_scale
            parts.append(kfac)
        others = [pair for pair in named if pair[0] not in treated]
        if others:
            decay = options.get("weight_decay", 0.0) / adam_scale  # as much of θ as K-FAC takes away
            parts.append(torch.optim.AdamW(others, lr=adam_scale, weight_decay=decay))
        return parts[0] if len(parts) == 1 else CompositeOptimizer(parts)

    return build


def watching(model: nn.Module, loss_fn: Callable[..., Any]) -> DirectionFactory:
    """:func:`kfac_direction` with the defaults for a loss: labels are drawn if its likelihood is known.

    Of any other loss K-FAC takes the gradients themselves (the empirical Fisher).
    """
    return kfac_direction(model, likelihood=likelihood_of(loss_fn))


def is_watchable(model: nn.Module) -> bool:
    """Whether the model has a layer for K-FAC, and is not compiled: such a model hides its layers."""
    if is_compiled(model):
        return False
    trained = [name for name, p in named_parameters(model).items() if p.requires_grad]
    return bool(_worthwhile(model, trained, LARGEST_FACTOR))
