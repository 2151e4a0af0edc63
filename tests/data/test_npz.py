"""Files that are not what they should be end in one message that names the file and the problem."""

from __future__ import annotations

import re

import numpy as np
import pytest

from gnewton.errors import InputError
from tests.data.cases import build, save_npz

ONES = np.ones((40, 3), np.float32)


class Evil:
    """Prints when it is unpickled; a harmless stand-in for code in a file."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"x_train": None}, "lacks the array x_train; it holds y_train, x_test, y_test"),
        ({"x_test": None, "xtest": ONES}, "lacks the array x_test; it holds x_train, y_train, y_test, xtest"),
        ({"x_test": None, "xtest": ONES}, "did you mean 'xtest'?"),
        ({"x_train": np.zeros(40, np.uint8)}, "x_train has shape (40,): must be (N, features)"),
        ({"x_train": np.zeros((40, 2, 2, 2, 2), np.uint8)}, "x_train has shape (40, 2, 2, 2, 2)"),
        ({"x_train": np.zeros((0, 6, 5, 3), np.uint8)}, "x_train is empty"),
        ({"x_test": np.zeros((10, 0, 5, 3), np.uint8)}, "x_test is empty"),
        (
            {"x_train": np.zeros((40, 3), np.int64)},
            "x_train is int64: must be uint8 (pixels) or a float type",
        ),
        ({"x_train": np.zeros((40, 3), complex)}, "x_train is complex128"),
        ({"x_train": np.full((40, 3), "a")}, "x_train is <U1"),
        ({"x_train": ONES * np.nan}, "x_train holds values that are not finite"),
        ({"x_train": np.full((40, 3), 1e39)}, "x_train holds values that are not finite"),
        ({"x_test": -ONES * np.inf}, "x_test holds values that are not finite"),
        ({"x_test": np.zeros((10, 6, 5, 1), np.uint8)}, "they must be alike"),
        ({"x_test": np.zeros((10, 6, 5, 3), np.float32)}, "they must be alike"),
        ({"y_train": np.arange(39)}, "x_train holds 40 samples and y_train 39 targets"),
        ({"y_test": np.int64(3)}, "x_test holds 10 samples and y_test no targets"),
        ({"y_train": np.zeros((40, 1), int)}, "y_train has shape (40, 1): integer labels must be (samples,)"),
        ({"y_train": np.zeros(40, bool)}, "y_train is bool: must be integers (labels) or floats (targets)"),
        ({"y_train": np.arange(40) - 1}, "y_train: label -1 is out of range"),
        ({"y_train": np.zeros(40, int)}, "y_train holds one class only"),
        ({"y_train": np.full(40, 10**9)}, "y_train: label 1000000000 is out of range"),
        (
            {"y_train": np.full(40, 2**64 - 1, np.uint64)},
            "y_train: label 18446744073709551615 is out of range",
        ),
        ({"y_test": np.full(10, 4)}, "y_test: label 4 is out of range: y_train has labels 0 … 3"),
        ({"y_test": np.ones(10)}, "a target of y_train is int64 of shape () and one of y_test float64"),
        (
            {"y_train": np.ones((40, 2)), "y_test": np.ones((10, 3))},
            "a target of y_train is float64 of shape (2,)",
        ),
        (
            {"y_train": np.ones((40, 0)), "y_test": np.ones((10, 0))},
            "y_train has shape (40, 0): float targets",
        ),
        ({"y_train": np.ones((40, 2, 2))}, "y_train has shape (40, 2, 2): float targets"),
        ({"y_train": np.full(40, np.nan)}, "y_train holds values that are not finite"),
        ({"y_train": np.array([Evil()] * 40, dtype=object)}, "cannot be read"),
    ],
)
def test_hostile_arrays_are_refused(tmp_path, capsys, replaced, message):
    path = save_npz(tmp_path / "a.npz", **replaced)
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        build("npz", path=str(path), validation=10)
    assert str(path) in str(raised.value)
    assert capsys.readouterr().out == ""


def damaged(name, tmp_path):
    path = tmp_path / "a.npz"
    if name == "truncated":
        content = save_npz(path).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    elif name == "flipped":
        content = bytearray(save_npz(path).read_bytes())
        content[500] ^= 0xFF
        path.write_bytes(content)
    elif name == "text":
        path.write_text("x_train, y_train")
    elif name == "empty":
        path.touch()
    elif name == "npy":
        with path.open("wb") as file:
            np.save(file, ONES)
    elif name == "folder":
        path.mkdir()
    elif name == "boastful":
        header = str({"descr": "|u1", "fortran_order": False, "shape": (10**15, 3)}).encode()
        import zipfile

        with zipfile.ZipFile(path, "w") as file:
            file.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    return path


@pytest.mark.parametrize(
    "name", ["missing", "truncated", "flipped", "text", "empty", "npy", "folder", "boastful"]
)
def test_damaged_files_are_refused(tmp_path, name):
    path = damaged(name, tmp_path)
    with pytest.raises(InputError, match=re.escape(f"data.path={path}: ")):
        build("npz", path=str(path), validation=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": 40}, "data.validation=40: must be < 40"),
        ({"subset": 31}, "data.subset=31: must be <= 30"),
        ({"augment__flip": True}, "data.augment: must be crop_padding=0 and flip=false"),
        ({"target": "input", "normalise": False}, "data.target=input: inputs must lie in [0, 1]"),
    ],
)
def test_options_that_do_not_suit_the_file_are_refused(tmp_path, changes, message):
    path = save_npz(tmp_path / "a.npz", x_train=2 * ONES, x_test=ONES[:10])
    with pytest.raises(InputError, match=re.escape(message)):
        build("npz", path=str(path), **{"validation": 10, **changes})


def test_padding_as_large_as_the_image_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.augment\.crop_padding=5: must be < 5"):
        build("npz", path=str(save_npz(tmp_path / "a.npz")), validation=10, augment__crop_padding=5)
