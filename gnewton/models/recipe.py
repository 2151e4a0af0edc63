"""The registry of networks, and what each of them must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.registry import Registry

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task


@dataclass(kw_only=True)
class ModelRecipe(ABC):
    """Options of one network. ``name`` is the choice ``model=name``.

    Recipes are read to list options and to check them, so torch is imported only inside :meth:`build`.
    """

    name: str

    @abstractmethod
    def build(self, task: Task) -> nn.Module:
        """Build the network for a task, initialised from torch's global random stream.

        Raises:
            InputError: if the network cannot serve the task's input shape or kind.
        """


MODELS = Registry("model", "gnewton.models", ModelRecipe)  # type: ignore[type-abstract]
