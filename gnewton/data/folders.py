"""The data set in a folder tree of images, one folder a class."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import ImageFolder

from gnewton.data.assemble import divide
from gnewton.data.dataset_options import ImageNet
from gnewton.data.image_files import ImageFiles
from gnewton.data.loader import LoaderSplit
from gnewton.data.splits import DataSet
from gnewton.data.tensors import Scaling
from gnewton.errors import InputError
from gnewton.tasks import Classification

_MEANS = (0.485, 0.456, 0.406)
_DEVIATIONS = (0.229, 0.224, 0.225)


def build_folders(options: ImageNet, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits; validation is held out of ``train`` by ``options.split_seed``.

    Raises:
        InputError: if the tree is not there, or train and val have different classes.
    """
    root = Path(options.root).expanduser()
    train, test = _tree(root / "train", options.root), _tree(root / "val", options.root)
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        raise InputError(f"data.root={options.root}: train and val hold different classes, such as {odd[0]}")
    training, held_out = divide(len(train.samples), options.validation, options.subset, options.split_seed)
    scaling = _scaling(options.normalise, device, dtype)

    def split(part: str, files: list[tuple[str, int]]) -> LoaderSplit:
        crop = part == "train" and options.augment.resized_crop
        flip = part == "train" and options.augment.flip
        return LoaderSplit(
            ImageFiles(
                files,
                size=options.size,
                resize=options.resize,
                resized_crop=crop,
                flip=flip,
            ),
            scaling,
            workers=options.workers,
            augment=crop or flip,
            seed=seed,
            title=f"the {part} split of data={options.name}",
        )

    return DataSet(
        name=options.name,
        task=Classification(input_shape=(3, options.size, options.size), outputs=len(train.classes)),
        train=split("train", [train.samples[index] for index in training]),
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
