"""A folder tree of images, one folder a class, read by worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gnewton.data.folder_options import FolderOptions
from gnewton.data.recipe import DATA

if TYPE_CHECKING:
    import torch

    from gnewton.data.splits import DataSet


@DATA.register("imagenet")
@dataclass(kw_only=True)
class ImageNet(FolderOptions):
    """``root/train/CLASS/*`` and ``root/val/CLASS/*``; the latter is the test split."""

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """See :meth:`DataRecipe.build`. Inputs (3, size, size)."""
        from gnewton.data.loader.folders import build_folder_set

        return build_folder_set(self, device, dtype, seed)
