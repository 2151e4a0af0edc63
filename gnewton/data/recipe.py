"""The registry of data sets, and what each of them must offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.registry import Registry

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet


@dataclass(kw_only=True)
class DataRecipe(ABC):
    """Options of one data set. ``name`` is the choice ``data=name``.

    Recipes are read to list options and to check them, so torch is imported only inside :meth:`build`.
    """

    name: str

    @abstractmethod
    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """Obtain the set, split it by ``seed`` and place it on ``device``; inputs come out as ``dtype``.

        Raises:
            InputError: if the files cannot be had or are not what they should be.
        """


DATA = Registry("data", "gnewton.data", DataRecipe)  # type: ignore[type-abstract]
