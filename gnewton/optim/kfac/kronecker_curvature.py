"""The Kronecker factors of all layers of a model and their preconditioners, and when each is renewed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from gnewton.backend import world_size
from gnewton.errors import GnewtonError, InputError, first_line
from gnewton.optim.kfac.capture import Capture
from gnewton.optim.kfac.kronecker_blocks import Layer
from gnewton.optim.kfac.layer_gradient import Parts
from gnewton.optim.kfac.low_rank import LowRank
from gnewton.optim.kfac.preconditioner import Corrected, Eigen, Inverses, Preconditioner
from gnewton.optim.kfac.statistics import Factors, Sums, moments, scaled_back

log = logging.getLogger(__name__)

PRECONDITIONERS: dict[str, type[Preconditioner]] = {
    "inverse": Inverses,
    "low_rank": LowRank,
    "eigen": Eigen,
    "ekfac": Corrected,
}
"""The preconditioners by name."""


class KroneckerCurvature:
    """The factors and the preconditioners of all layers, each renewed in a period of its own.

    Args:
        layers: the layers, in the order of the model.
        capture: gathers the statistics of the passes between two steps.
        kind: the name of the preconditioners, one of :data:`PRECONDITIONERS`.
        decay, identity: of the averages, see :class:`~gnewton.optim.kfac.statistics.Factors`.
        statistics_period, inverse_period: steps between two updates of the averages, and of the
            preconditioners.
        early_inverses: whether the preconditioners are also updated with the second statistics, and whenever
            their age has doubled since, until that is ``inverse_period``.
        reference_scaling: as for :func:`~gnewton.optim.kfac.statistics.moments`.

    Attributes:
        factors, preconditioners: of the layers seen so far.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        capture: Capture,
        kind: str,
        *,
        decay: float,
        identity: bool,
        statistics_period: int,
        inverse_period: int,
        early_inverses: bool,
        reference_scaling: bool,
    ) -> None:
        self.factors: dict[Layer, Factors] = {}
        self.preconditioners: dict[Layer, Preconditioner] = {}
        self._layers, self._capture, self._kind = layers, capture, PRECONDITIONERS[kind]
        self._decay, self._identity = decay, identity
        self._statistics_period, self._inverse_period = statistics_period, inverse_period
        self._reference_scaling, self._early = reference_scaling, early_inverses
        self._steps = self._next_statistics = self._next_inverses = 0

    def update(self, damping: float, gradients: Mapping[Layer, Parts]) -> None:
        """Add the statistics of the passes of this step to the averages, and refresh the preconditioners.

        They are refreshed for all layers when due, and for a new layer at once.

        Args:
            damping: λ.
            gradients: of the parameters of each layer that has any.

        Raises:
            InputError: if there are no statistics yet.
            GnewtonError: if a factor has no inverse.
        """
        self._take_statistics(gradients)
        if not self.factors:
            if self._capture.lenient:
                return
            raise InputError(
                "step: no statistics yet; before the first step the model itself must be called in training "
                "mode, with gradients; calls of its parts are not seen"
            )
        due = self._steps >= self._next_inverses
        layers = [layer for layer in self.factors if due or layer not in self.preconditioners]
        if not layers:
            return
        preconditioners = {layer: self.preconditioners.get(layer) or self._kind() for layer in layers}
        if due:
            self._next_inverses = self._steps + self._age()
        try:
            self._kind.refresh(
                list(preconditioners.values()), [self.factors[layer] for layer in layers], damping
            )
        except GnewtonError as error:
            if not self._capture.lenient:
                raise
            log.warning("K-FAC: the preconditioners stay as they are: %s", first_line(error))
            return
        self.preconditioners |= preconditioners
        self._set_bases()

    def _age(self) -> int:
        """Steps until the next refresh of all preconditioners."""
        if not self._early:
            return self._inverse_period
        return min(self._inverse_period, max(self._steps, self._statistics_period))

    def end_step(self) -> None:
        """Count a step; the passes after it feed the next one."""
        self._steps += 1
        self._begin_step()

    def state(self) -> dict[str, Any]:
        """Factors, preconditioners and the steps when they are due."""
        return {
            "steps": self._steps,
            "next_statistics": self._next_statistics,
            "next_inverses": self._next_inverses,
            "factors": {layer.name: factors.state() for layer, factors in self.factors.items()},
            "preconditioners": {layer.name: kept.state() for layer, kept in self.preconditioners.items()},
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that a value of :meth:`state` belongs to these layers.

        Raises:
            InputError: if it does not.
        """
        known = {layer.name: layer for layer in self._layers}
        for name, tensors in state["factors"].items():
            sizes = [len(tensors[key]) for key in ("a", "g")]
            if name not in known or sizes != [known[name].inputs, known[name].outputs]:
                raise InputError(f"state_dict: the model has no layer '{name}' with factors of sizes {sizes}")

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the value of :meth:`state`."""
        known = {layer.name: layer for layer in self._layers}
        device = self._layers[0].weight.device

        def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {key: value.to(device, copy=True) for key, value in tensors.items()}

        self._steps = state["steps"]
        self._next_statistics, self._next_inverses = state["next_statistics"], state["next_inverses"]
        self.factors = {known[name]: self._new_factors(known[name]) for name in state["factors"]}
        self.preconditioners = {known[name]: self._kind() for name in state["preconditioners"]}
        for layer, factors in self.factors.items():
            factors.load(copies(state["factors"][layer.name]))
        for layer, preconditioner in self.preconditioners.items():
            preconditioner.load(copies(state["preconditioners"][layer.name]))
        self._begin_step()
        self._set_bases()

    def _take_statistics(self, gradients: Mapping[Layer, Parts]) -> None:
        capture = self._capture
        alone = world_size() == 1
        if not capture.due or not (capture.samples if alone else capture.sums or self.factors):
            return
        # processes join the same layers, whichever of them their own passes reached
        sums = {
            layer: capture.sums.get(layer) or Sums(layer, capture.bases.get(layer))
            for layer in self._layers
            if layer in capture.sums or not alone
        }
        scale = capture.samples * scaled_back(
            {layer: of_layer for layer, of_layer in sums.items() if layer not in capture.drawn}, gradients
        )
        scales = [1.0 if layer in capture.drawn else scale for layer in sums]
        for layer, moment in moments(sums, capture.samples, scales, self._reference_scaling).items():
            if layer not in self.factors:
                self.factors[layer] = self._new_factors(layer)
            finite = self.factors[layer].average(moment)
            if layer in self.preconditioners:
                self.preconditioners[layer].observe(moment.squares, finite, self._decay)
        self._next_statistics = self._steps + self._statistics_period

    def _begin_step(self) -> None:
        self._capture.clear()
        self._capture.due = self._steps >= self._next_statistics

    def _set_bases(self) -> None:
        self._capture.bases = {layer: kept.basis for layer, kept in self.preconditioners.items()}

    def _new_factors(self, layer: Layer) -> Factors:
        return Factors(layer, self._decay, self._identity)
