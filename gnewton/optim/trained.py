"""The parameters that a model trained when an optimizer was built for it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from gnewton.errors import InputError
from gnewton.options import listing
from gnewton.wrappers import named_parameters


class Trained:
    """Notices parameters that are unfrozen, frozen, added, removed or replaced later.

    Args:
        model: the network.
        parameters: those that the optimizer steps, by name.
        holder: what they are parts of, as errors begin.
        missing: what to say of a parameter that the model trains besides, ``{}`` standing for the names;
            None: such parameters are somebody else's.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Tensor], *, holder: str, missing: str | None
    ) -> None:
        self._model = model
        self._parameters = dict(parameters)
        self._identities = {id(p) for p in parameters.values()}
        self._holder = holder
        self._missing = missing

    def check(self) -> None:
        """See to it that the model trains these parameters and, unless they may, no others.

        Raises:
            InputError: if it does not.
        """
        now = {id(p) for p in self._model.parameters() if p.requires_grad}
        if now == self._identities or (self._missing is None and now >= self._identities):
            return
        named = trainable(self._model)
        if set(named) == set(self._parameters):
            replaced = [name for name, p in self._parameters.items() if named[name] is not p]
            raise InputError(
                f"{self._holder}: the model has other tensors now as {listing(replaced)}; "
                "build a new optimizer"
            )
        raise InputError(
            f"{self._holder}: the model no longer trains what it was built for: "
            + difference(set(named), set(self._parameters), self._missing)
        )


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that a model trains, by name."""
    return {name: p for name, p in named_parameters(model).items() if p.requires_grad}


def difference(trained: set[str], held: set[str], missing: str | None) -> str:
    """What the model trains and nobody holds, and the other way round."""
    parts = []
    if missing is not None and trained - held:
        parts.append(missing.format(listing(sorted(trained - held))))
    if held - trained:
        parts.append(f"it has no trainable {listing(sorted(held - trained))}")
    return "; ".join(parts)
