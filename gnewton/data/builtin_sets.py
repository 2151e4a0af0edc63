"""Data sets that need no file of the user's and no download.

A random network's samples, a differential equation's points, empty batches, and the embedded text as blocks
of characters, each with the character that follows.

``tiny_text.txt`` is the beginning of the text that A. Karpathy put together from plays of William Shakespeare
(1564–1616, public domain), https://github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt, up to the
end of a speech before 200,000 bytes: ASCII, lines ended by ``\\n``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnewton.data import Batch, BatchStream, DataSet, Split
from gnewton.data.dataset_options import TEXT_CHARACTERS, NoData, Poisson, Teacher, TinyText
from gnewton.data.tensors import Scaling, TensorSplit, mixed_seed
from gnewton.errors import InputError
from gnewton.tasks import Minimisation, Regression, TokenClassification

# --- a random teacher ---------------------------------------------------------------------------------------

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
}


def build_teacher(options: Teacher, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits. Training targets carry the noise; validation and test targets do not."""
    weights = teacher_weights(options)
    scale = _root_mean_square(options, weights)
    work = torch.promote_types(dtype, torch.float32)
    one, zero = torch.ones((), device=device, dtype=work), torch.zeros((), device=device, dtype=work)

    def split(part: str, count: int) -> TensorSplit:
        random = _random(options, part)
        inputs = random.standard_normal((count, options.inputs))
        targets = answers(options, weights, inputs) / scale
        if part == "train":
            targets += options.noise * random.standard_normal(targets.shape)
        return TensorSplit(
            torch.from_numpy(inputs).to(work).to(device),
            torch.from_numpy(targets).to(dtype).to(device),
            Scaling(one, zero, dtype),
            seed=seed,
            title=f"the {part} split of data={options.name}",
        )

    return DataSet(
        name=options.name,
        task=Regression(input_shape=(options.inputs,), outputs=options.outputs),
        train=split("train", options.train),
        validation=split("validation", options.validation),
        test=split("test", options.test),
    )


def teacher_weights(options: Teacher) -> list[np.ndarray]:
    """The teacher's matrices (fan_in, fan_out), entries N(0, 1 / fan_in); it has no biases."""
    random = _random(options, "teacher")
    widths = [options.inputs, *options.hidden, options.outputs]
    return [
        random.standard_normal((fan_in, fan_out)) / np.sqrt(fan_in) for fan_in, fan_out in pairwise(widths)
    ]


def answers(options: Teacher, weights: list[np.ndarray], inputs: np.ndarray) -> np.ndarray:
    """The teacher's outputs for inputs (N, inputs): (N, outputs), in float64."""
    activation = _ACTIVATIONS[options.activation]
    for matrix in weights[:-1]:
        inputs = activation(inputs @ matrix)
    return inputs @ weights[-1]


def _root_mean_square(options: Teacher, weights: list[np.ndarray]) -> float:
    """Root mean square of the teacher's outputs, by which targets are divided: answering zero has loss 1."""
    probe = _random(options, "scale").standard_normal((1024, options.inputs))
    size = float(np.sqrt(np.mean(answers(options, weights, probe) ** 2)))
    return size if size > 0 else 1.0  # a narrow relu teacher may answer zero to everything


def _random(options: Teacher, part: str) -> np.random.RandomState:
    """A generator for one part, so that the size of one split does not move the samples of another."""
    return np.random.RandomState(mixed_seed("teacher", options.split_seed, part) % 2**32)


# --- no data ------------------------------------------------------------------------------------------------


def build_empty(options: NoData, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """Three times the same split; ``seed`` has no effect."""
    split = EmptySplit(options.steps_per_epoch, device, dtype)
    task = Minimisation(input_shape=(), outputs=1)
    return DataSet(options.name, task, train=split, validation=split, test=split)


class EmptySplit(Split):
    """A fixed number of steps an epoch, whatever the batch size; each batch is one sample of no numbers.

    Both tensors of a batch have shape (1, 0): empty, yet a mean over the batch weighs it as one sample.
    Evaluation (:meth:`in_order`) sees one such batch, as the function has one value.
    """

    def __init__(self, steps: int, device: torch.device, dtype: torch.dtype) -> None:
        self._steps = steps
        nothing = torch.empty((1, 0), device=device, dtype=dtype)
        self._batch: Batch = (nothing, nothing)

    def __len__(self) -> int:
        """Steps in an epoch."""
        return self._steps

    def steps(self, batch_size: int | None) -> int:
        """The same, whatever the batch size."""
        return self._steps

    def epoch(self, index: int, batch_size: int | None, *, skip: int = 0) -> Iterator[Batch]:
        """One empty batch a step; ``batch_size`` has no effect."""
        return repeat(self._batch, max(self._steps - skip, 0))

    def stream(self, batch_size: int | None, *, seed: int) -> BatchStream:
        """Empty batches without end."""
        return _EmptyStream(self._batch)

    def in_order(self, batch_size: int, limit: int | None = None) -> Iterator[Batch]:
        """One empty batch: one evaluation of the function."""
        return iter((self._batch,))


class _EmptyStream(BatchStream):
    def __init__(self, batch: Batch) -> None:
        self.position = 0
        self._batch = batch

    def __next__(self) -> Batch:
        self.position += 1
        return self._batch


# --- the Poisson equation -----------------------------------------------------------------------------------


def source(points: np.ndarray, frequency: int) -> np.ndarray:
    """f(x) = Π_i sin(kπ x_i) for points (N, d): (N, 1)."""
    return np.sin(frequency * np.pi * points).prod(axis=1, keepdims=True)


def build_poisson(options: Poisson, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits: points drawn evenly from the unit cube, each split by a stream of its own.

    The loss of a model that returns −Δu is the mean squared residual of the equation.
    """
    work = torch.promote_types(dtype, torch.float32)
    one, zero = torch.ones((), device=device, dtype=work), torch.zeros((), device=device, dtype=work)

    def split(part: str, count: int) -> TensorSplit:
        random = np.random.RandomState(mixed_seed("poisson", options.split_seed, part) % 2**32)
        points = random.uniform(size=(count, options.dimensions))
        return TensorSplit(
            torch.from_numpy(points).to(work).to(device),
            torch.from_numpy(source(points, options.frequency)).to(dtype).to(device),
            Scaling(one, zero, dtype),
            seed=seed,
            title=f"the {part} split of data={options.name}",
        )

    return DataSet(
        name=options.name,
        task=Regression(input_shape=(options.dimensions,), outputs=1),
        train=split("train", options.train),
        validation=split("validation", options.validation),
        test=split("test", options.test),
    )


# --- text ---------------------------------------------------------------------------------------------------

TEXT_FILE = Path(__file__).with_name("tiny_text.txt")
TEXT_DIGEST = "d48b8b09f2897bd9046088795c8ba6060e7a4394a2f1e58a562a4cea0a0a74dc"
"""SHA-256 of the file."""

OTHER = "�"
"""The symbol of every character that is not kept."""


def read_text() -> str:
    """The text of the package.

    Raises:
        InputError: if the file is missing, or is not the one that was packed.
    """
    try:
        stored = TEXT_FILE.read_bytes()
    except OSError as error:
        raise InputError(f"data=tiny_text: {TEXT_FILE} cannot be read ({error.strerror})") from error
    if hashlib.sha256(stored).hexdigest() != TEXT_DIGEST or len(stored) != TEXT_CHARACTERS:
        raise InputError(f"data=tiny_text: {TEXT_FILE} is damaged; install the package again")
    return stored.decode("ascii")


def encode(text: str, symbols: int | None) -> tuple[np.ndarray, str]:
    """The place of each character in the alphabet, (len(text),) int64, and the alphabet.

    The alphabet is sorted by code points. With ``symbols`` it holds the most frequent ones (of equally
    frequent ones those that come first) and, unless these are all, :data:`OTHER` at the end.
    """
    counts = Counter(text)
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    kept = sorted(ranked[:symbols])
    alphabet = "".join(kept) + (OTHER if len(kept) < len(counts) else "")
    places = {character: place for place, character in enumerate(alphabet)}
    rest = len(kept)
    return np.array([places.get(character, rest) for character in text], dtype=np.int64), alphabet


def build_text(options: TinyText, device: torch.device, dtype: torch.dtype, seed: int) -> DataSet:
    """The three splits. Inputs and targets (block,) int64: the targets are the inputs one character later."""
    text = read_text()
    codes, alphabet = encode(text.lower() if options.lower else text, options.symbols)
    size = options.block
    blocks = (len(codes) - 1) // size
    inputs = torch.from_numpy(codes[: blocks * size].reshape(blocks, size)).to(device)
    targets = torch.from_numpy(codes[1 : blocks * size + 1].reshape(blocks, size)).to(device)
    training = blocks - options.validation - options.test

    def split(part: str, start: int, stop: int) -> TensorSplit:
        return TensorSplit(
            inputs[start:stop],
            targets[start:stop],
            _as_stored,
            seed=seed,
            title=f"the {part} split of data={options.name}",
        )

    return DataSet(
        name=options.name,
        task=TokenClassification(input_shape=(size,), outputs=len(alphabet), symbols=len(alphabet)),
        train=split("train", 0, training if options.subset is None else options.subset),
        validation=split("validation", training, training + options.validation),
        test=split("test", training + options.validation, blocks),
        digest=TEXT_DIGEST[:16],
    )


def _as_stored(batch: Tensor) -> Tensor:
    """Symbols are not scaled: they are not quantities."""
    return batch
