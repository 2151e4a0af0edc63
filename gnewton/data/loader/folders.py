"""From a folder tree to a data set."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchvision.datasets import ImageFolder

from gnewton.data.loader.samples import ImageFiles
from gnewton.data.loader.split import LoaderSplit
from gnewton.data.memory.assemble import divide
from gnewton.data.memory.tensors import Scaling
from gnewton.data.splits import DataSet
from gnewton.errors import InputError
from gnewton.tasks import Classification

if TYPE_CHECKING:
    from gnewton.data.folder_options import FolderOptions

_MEANS = (0.485, 0.456, 0.406)
_DEVIATIONS = (0.229, 0.224, 0.225)


def build_folder_set(recipe: FolderOptions, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits; validation is held out of ``train`` by ``recipe.split_seed``.

    Raises:
        InputError: if the tree is not there, or train and val have different classes.
    """
    root = Path(recipe.root).expanduser()
    train, test = _tree(root / "train", recipe.root), _tree(root / "val", recipe.root)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(f"data.root={recipe.root}: train and val hold different classes, such as {odd[0]}")
    kept, held_out = divide(len(train.samples), recipe.validation, recipe.subset, recipe.split_seed)
    scaling = _scaling(recipe.normalise, device, dtype)

    def split(part: str, files: list[tuple[str, int]]) -> LoaderSplit:
        augment = recipe.augment if part == "train" else None
        return LoaderSplit(
            ImageFiles(
                files,
                size=recipe.size,
                resize=recipe.resize,
                resized_crop=augment is not None and augment.resized_crop,
                flip=augment is not None and augment.flip,
            ),
            scaling,
            workers=recipe.workers,
            augment=augment is not None and (augment.resized_crop or augment.flip),
            seed=seed,
            title=f"the {part} split of data={recipe.name}",
        )

    return DataSet(
        name=recipe.name,
        task=Classification(input_shape=(3, recipe.size, recipe.size), outputs=len(train.classes)),
        train=split("train", [train.samples[index] for index in kept]),
        validation=split("validation", [train.samples[index] for index in held_out]),
        test=split("test", test.samples),
    )


def _tree(folder: Path, root: str) -> ImageFolder:
    if not folder.is_dir():
        raise InputError(
            f"data.root={root}: there is no folder {folder}; it must hold one folder of images per class"
        )
    try:
        return ImageFolder(str(folder))
    except (OSError, ValueError) as error:
        raise InputError(
            f"data.root={root}: {folder} must hold one folder of images per class: {error}"
        ) from error


def _scaling(normalise: bool, device: torch.device, dtype: torch.dtype) -> Scaling:
    means, deviations = (_MEANS, _DEVIATIONS) if normalise else ((0.0,) * 3, (1.0,) * 3)
    mean, deviation = (
        torch.tensor(entry, dtype=torch.float64)[:, None, None] for entry in (means, deviations)
    )
    work = torch.promote_types(dtype, torch.float32)
    return Scaling((255.0 * deviation).to(work).to(device), (-mean / deviation).to(work).to(device), dtype)
