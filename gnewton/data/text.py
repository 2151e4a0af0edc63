"""The embedded text as blocks of characters, each with the character that follows.

``tiny_text.txt`` is the beginning of the text that A. Karpathy put together from plays of William Shakespeare
(1564–1616, public domain), https://github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt, up to the
end of a speech before 200,000 bytes: ASCII, lines ended by ``\\n``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gnewton.data import DataSet
from gnewton.data.dataset_options import TEXT_CHARACTERS, TinyText
from gnewton.data.tensors import TensorSplit
from gnewton.errors import InputError
from gnewton.tasks import TokenClassification

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
