"""The options of every data set, checked before torch is loaded, and the name of its builder."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gnewton.options import Role, option, option_of
from gnewton.registry import Registry, imported

if TYPE_CHECKING:
    import torch

    from gnewton.data import DataSet

LABEL, INPUT = "label", "input"
AUTO, CHANNELS_FIRST, CHANNELS_LAST = "auto", "channels_first", "channels_last"

DIGITS_SAMPLES = 1797


@dataclass(kw_only=True)
class DataRecipe(ABC):
    """Options of one data set. ``name`` is the choice ``data=name``.

    Attributes:
        builder: the function of (options, device, dtype, seed) that builds the set, as ``module:name``.
    """

    builder: ClassVar[str]

    name: str

    def build(self, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
        """Obtain the set, split it, and place it on ``device``; inputs come out as ``dtype``.

        The trainer takes batches of one form, (inputs, targets): see :data:`gnewton.data.Batch`.

        Args:
            device, dtype: of the batches.
            seed: of the run; decides the order of the samples and their augmentation.

        Raises:
            InputError: if a file cannot be obtained or is not as required.
        """
        data: DataSet = imported(self.builder)(self, device, dtype, seed)
        return data


DATA = Registry("data", "gnewton.data.dataset_options", DataRecipe)  # type: ignore[type-abstract]


@dataclass(kw_only=True)
class Augment:
    """Random changes to training images held in memory."""

    crop_padding: int = option(
        0,
        help="crop at a random place after padding each side by this many pixels of 0; 0: no crop",
        at_least=0,
    )
    flip: bool = option(False, help="mirror half of the images left to right")


@dataclass(kw_only=True)
class InMemoryRecipe(DataRecipe):
    """Samples on the device, the validation part held out of the training part by ``split_seed``."""

    samples: ClassVar[int | None] = None
    """Samples to divide into training and validation (and test, where the set has none); None if unknown."""
    side: ClassVar[int | None] = None
    """Height and width of its images in pixels; None if unknown before they are read."""

    validation: int = option(1000, help="samples held out of training to compare settings on", at_least=1)
    subset: int | None = option(
        None, help="train on this many samples only, for quick runs; null: on all of them", at_least=1
    )
    split_seed: int = option(
        0,
        help="decides which samples are held out; kept apart from the run's seed, so that runs compare",
        at_least=0,
        at_most=2**32 - 1,
    )
    normalise: bool = option(
        True, help="subtract the mean and divide by the deviation of each channel (images) or feature"
    )
    target: str = option(
        LABEL,
        help="label: predict y; input: reconstruct x, in [0, 1] (needs normalise=false)",
        choices=(LABEL, INPUT),
    )
    augment: Augment = option(Augment, help="random changes to each training image, new in every epoch")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Options that contradict each other, or the size of the set."""
        if self.target == INPUT and self.normalise:
            yield "normalise", f"must be false with target={INPUT}, whose pixels stay in [0, 1]"
        if self.side is not None and self.augment.crop_padding >= self.side:
            yield "augment.crop_padding", f"must be < {self.side}, the side of an image in pixels"
        if self.samples is None:
            return
        training = self.samples - self.validation
        if training < 1:
            yield "validation", f"must be < {self.samples}, the samples to divide"
        elif self.subset is not None and self.subset > training:
            yield "subset", f"must be <= {training}, the training samples beside the validation split"


@dataclass(kw_only=True)
class PublicImages(InMemoryRecipe):
    """Images that are fetched once (see :mod:`gnewton.data.fetch`) and then read from ``root``.

    The class attributes ``means`` and ``deviations`` are the commonly published ones of the training pixels
    in [0, 1], one for each channel.
    """

    builder = "gnewton.data.assemble:build_public_images"

    means: ClassVar[tuple[float, ...]]
    deviations: ClassVar[tuple[float, ...]]

    root: str = option(
        "${oc.env:GNEWTON_DATA,data}",
        help="folder of data sets, relative to where the command is run; fetched copies go here",
        role=Role.PLACE,
    )


@DATA.register("mnist")
@dataclass(kw_only=True)
class Mnist(PublicImages):
    """60,000 + 10,000 grey 28×28 images of digits."""

    samples = 60_000
    side = 28
    means = (0.1307,)
    deviations = (0.3081,)


@DATA.register("fashion_mnist")
@dataclass(kw_only=True)
class FashionMnist(PublicImages):
    """60,000 + 10,000 grey 28×28 images of clothes."""

    samples = 60_000
    side = 28
    means = (0.2860,)
    deviations = (0.3530,)


@DATA.register("cifar10")
@dataclass(kw_only=True)
class Cifar10(PublicImages):
    """50,000 + 10,000 colour 32×32 images in 10 classes."""

    samples = 50_000
    side = 32
    means = (0.4914, 0.4822, 0.4465)
    deviations = (0.2470, 0.2435, 0.2616)


@DATA.register("cifar100")
@dataclass(kw_only=True)
class Cifar100(PublicImages):
    """50,000 + 10,000 colour 32×32 images in 100 classes."""

    samples = 50_000
    side = 32
    means = (0.5071, 0.4865, 0.4409)
    deviations = (0.2673, 0.2564, 0.2762)


def _division(recipe: Digits | Tabular, size: int) -> Iterator[tuple[str, str]]:
    """What is wrong with dividing ``size`` samples into training, validation and test."""
    training = size - recipe.test - recipe.validation
    if training < 1:
        yield "test", f"must be < {size} together with validation={recipe.validation}"
    elif recipe.subset is not None and recipe.subset > training:
        yield "subset", f"must be <= {training}, the samples beside test and validation"


@DATA.register("digits")
@dataclass(kw_only=True)
class Digits(InMemoryRecipe):
    """1,797 grey 8×8 images in 10 classes, which come with scikit-learn: nothing to fetch, trains in seconds.

    They are divided into training, validation and test by ``split_seed``.
    """

    builder = "gnewton.data.assemble:build_digits"

    side = 8

    test: int = option(297, help="samples held out for the final evaluation", at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See :meth:`InMemoryRecipe.conflicts`."""
        yield from super().conflicts()
        yield from _division(self, DIGITS_SAMPLES)


TABLES = {"breast_cancer": 569, "wine": 178, "diabetes": 442}
"""The tables of scikit-learn and their numbers of samples."""


@DATA.register("tabular")
@dataclass(kw_only=True)
class Tabular(InMemoryRecipe):
    """Rows of measurements that come with scikit-learn: two or three classes, or a regression."""

    builder = "gnewton.data.assemble:build_tabular"

    table: str = option(
        "breast_cancer",
        help="breast_cancer: 569 × 30, 2 classes; wine: 178 × 13, 3 classes; diabetes: 442 × 10, regression",
        choices=tuple(TABLES),
    )
    test: int = option_of(Digits, "test", 36)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """See :meth:`InMemoryRecipe.conflicts`."""
        yield from super().conflicts()
        yield from _division(self, TABLES[self.table])


@DATA.register("npz")
@dataclass(kw_only=True)
class Npz(InMemoryRecipe):
    """A file with the arrays x_train, y_train, x_test, y_test.

    Inputs: uint8 or float, (N, D) features, (N, H, W), (N, H, W, C) or (N, C, H, W) images. Integer targets
    (N,) are labels 0 … K-1; float targets (N,) or (N, d) make it a regression.
    """

    builder = "gnewton.data.npz:build_npz"

    path: str = option(
        help="the file. Inputs: uint8 or float, (N,D), (N,H,W) or (N,H,W,C); targets: labels "
        "0..K-1 or floats",
        role=Role.PLACE,
    )
    layout: str = option(
        AUTO,
        help="the axes of images with channels: channels_last (N,H,W,C); channels_first (N,C,H,W); auto: by "
        "their sizes",
        choices=(AUTO, CHANNELS_FIRST, CHANNELS_LAST),
        before=CHANNELS_LAST,
    )


TEXT_CHARACTERS = 199_994
"""Length of the embedded text."""


@DATA.register("tiny_text")
@dataclass(kw_only=True)
class TinyText(DataRecipe):
    """The next character of a text, at every place of a block: the beginning of Shakespeare's plays.

    The text is cut into blocks; the last ones are the test part, those before them the validation part.
    """

    builder = "gnewton.data.builtin_sets:build_text"

    block: int = option(64, help="characters in a sample", at_least=1)
    lower: bool = option(False, help="turn capitals into small letters: 37 symbols instead of 62")
    symbols: int | None = option(
        None,
        help="keep the most frequent symbols, this many, and write all others as one; null: keep all",
        at_least=1,
    )
    validation: int = option(200, help="blocks held out before the test part", at_least=1)
    test: int = option(200, help="blocks held out at the end of the text", at_least=1)
    subset: int | None = option_of(
        InMemoryRecipe, "subset", help="train on this many blocks only, from the first; null: on all of them"
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Parts that the text is too short for."""
        blocks = (TEXT_CHARACTERS - 1) // max(self.block, 1)
        training = blocks - self.validation - self.test
        if blocks < 3:
            yield "block", f"must be <= {(TEXT_CHARACTERS - 1) // 3}, for a block in each of the three parts"
        elif training < 1:
            yield (
                "test",
                f"must be < {blocks}, the blocks of the text, together with validation={self.validation}",
            )
        elif self.subset is not None and self.subset > training:
            yield "subset", f"must be <= {training}, the blocks beside test and validation"


@DATA.register("teacher")
@dataclass(kw_only=True)
class Teacher(DataRecipe):
    """Regression on the answers of a random network to Gaussian inputs, plus noise."""

    builder = "gnewton.data.builtin_sets:build_teacher"

    inputs: int = option(20, help="length of an input", at_least=1)
    outputs: int = option(5, help="length of a target, whose mean square is about 1", at_least=1)
    hidden: list[int] = option(
        [50, 50], help="widths of the teacher's hidden layers; []: a linear teacher", at_least=1
    )
    activation: str = option(
        "tanh",
        help="activation function of the teacher",
        choices=("identity", "relu", "sigmoid", "tanh"),
    )
    noise: float = option(0.0, help="deviation of the Gaussian noise added to training targets", at_least=0)
    train: int = option(10000, help="training samples", at_least=1)
    validation: int = option(1000, help="validation samples, without noise", at_least=1)
    test: int = option(1000, help="test samples, without noise", at_least=1)
    split_seed: int = option_of(
        InMemoryRecipe,
        "split_seed",
        help="decides the teacher and the samples; kept apart from the run's seed, so that runs compare",
    )


@DATA.register("poisson")
@dataclass(kw_only=True)
class Poisson(DataRecipe):
    """Random points in the unit cube and the source f(x) = Π_i sin(kπ x_i) of Poisson's equation there.

    With −Δu = f inside and u = 0 on the boundary, u(x) = f(x)/(d k²π²).
    """

    builder = "gnewton.data.builtin_sets:build_poisson"

    dimensions: int = option(2, help="d, coordinates of a point", at_least=1, at_most=6)
    frequency: int = option(1, help="k, half waves of the source along each axis", at_least=1)
    train: int = option(2000, help="points for training", at_least=1)
    validation: int = option(1000, help="points for validation", at_least=1)
    test: int = option(1000, help="points for the test", at_least=1)
    split_seed: int = option_of(InMemoryRecipe, "split_seed", help="decides the points")


@dataclass(kw_only=True)
class FolderAugment:
    """Random changes to training images read from a folder."""

    resized_crop: bool = option(
        True, help="cut out 8-100 % of the area at an aspect ratio of 3/4-4/3 and resize it"
    )
    flip: bool = option_of(Augment, "flip", True)


@DATA.register("imagenet")
@dataclass(kw_only=True)
class ImageNet(DataRecipe):
    """The images ``root/train/CLASS/*`` and, as the test split, ``root/val/CLASS/*``, read by workers."""

    builder = "gnewton.data.image_folders:build_folders"

    root: str = option(
        "${oc.env:GNEWTON_DATA,data}/imagenet",
        help="folder with train/ and val/; val/ is the test split",
        role=Role.PLACE,
    )
    validation: int = option_of(InMemoryRecipe, "validation", 50_000)
    subset: int | None = option_of(InMemoryRecipe, "subset")
    split_seed: int = option_of(InMemoryRecipe, "split_seed")
    size: int = option(224, help="side of the square images the network sees, in pixels", at_least=1)
    resize: int = option(
        256,
        help="shorter side before the centre square is cut out, in pixels, where no random crop is taken",
        at_least=1,
    )
    normalise: bool = option_of(InMemoryRecipe, "normalise")
    augment: FolderAugment = option(
        FolderAugment, help="random changes to each training image, new in every epoch"
    )
    workers: int = option(
        8, help="processes that decode images; 0: decode in the training process", at_least=0
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Options that contradict each other."""
        if self.resize < self.size:
            yield "resize", f"must be >= size={self.size}, the square cut from the resized image"


@DATA.register("none")
@dataclass(kw_only=True)
class NoData(DataRecipe):
    """No samples, for a function to minimise: an epoch is a number of steps, every batch is empty."""

    builder = "gnewton.data.builtin_sets:build_empty"

    steps_per_epoch: int = option(
        100, help="steps that count as one epoch: one row of metrics.csv each", at_least=1
    )
