"""Invalid files end in one message that names the file and the problem."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from gnewton.errors import InputError
from tests.data.cases import build, colour_arrays, save_npz

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


@pytest.mark.parametrize("kind", ["float16", "float32", "float64"])
@pytest.mark.parametrize(
    ("offset", "spread"), [(0.0, 1.0), (1000.0, 1e-3), (1.7e9, 30.0), (-1e30, 1e25), (0.0, 1e-30)]
)
def test_features_far_from_zero_keep_their_digits(tmp_path, kind, offset, spread):
    if kind != "float64" and (offset, spread) != (0.0, 1.0):
        pytest.skip("the file itself cannot hold these digits")
    x = (offset + spread * np.random.default_rng(0).normal(size=(500, 1))).astype(kind)
    labels = np.arange(500) % 2
    path = save_npz(tmp_path / "a.npz", x_train=x, y_train=labels, x_test=x[:20], y_test=labels[:20])
    data = build("npz", path=str(path), validation=20)
    inputs = torch.cat([batch[0] for batch in data.train.in_order(1000)])
    assert inputs.dtype == torch.float32
    if kind != "float16":
        assert len(inputs.unique()) == 480
    assert inputs.std(correction=0) == pytest.approx(1.0, rel=1e-6)
    assert inputs.mean() == pytest.approx(0.0, abs=1e-6)


def test_features_are_centred_by_those_that_are_trained_on(tmp_path):
    """Each column as in float64; whole numbers, and a constant that float64 cannot average exactly."""
    random = np.random.default_rng(0)
    x = np.stack(
        [random.integers(0, 2**31, 60).astype(float), np.full(60, 1.7e9 + 0.1), 1e-9 * random.random(60)], 1
    )
    labels = np.arange(60) % 3
    path = save_npz(tmp_path / "a.npz", x_train=x, y_train=labels, x_test=x[:9] + 1, y_test=labels[:9])
    data = build("npz", path=str(path), validation=20)
    order = np.random.RandomState(0).permutation(60)
    kept = x[order[20:]]
    mean, deviation = kept.mean(0), np.array([kept[:, 0].std(), 1.0, kept[:, 2].std()])
    for split, rows in ((data.train, kept), (data.validation, x[order[:20]]), (data.test, x[:9] + 1)):
        inputs = torch.cat([batch[0] for batch in split.in_order(1000)]).double().numpy()
        expected = (rows - mean) / deviation
        assert inputs[:, [0, 2]] == pytest.approx(expected[:, [0, 2]], rel=1e-6, abs=1e-6)
        assert set(inputs[:, 1]) == ({0.0} if split is not data.test else {1.0})


def test_without_normalisation_features_are_taken_as_they_are(tmp_path):
    path = save_npz(tmp_path / "a.npz", x_train=7 * ONES, x_test=7 * ONES[:10])
    data = build("npz", path=str(path), validation=10, normalise=False)
    assert {float(value) for value in next(iter(data.train.in_order(99)))[0].unique()} == {7.0}


def test_arrays_that_are_not_needed_are_not_read(tmp_path, capsys):
    path = tmp_path / "a.npz"
    content = dict(colour_arrays().items())
    np.savez(path, **content, names=np.array([Evil(), Evil()], dtype=object))
    assert len(build("npz", path=str(path), validation=10).train) == 30
    np.savez(path, **{**content, "y_test": np.array([Evil()] * 10, dtype=object)})
    with pytest.raises(
        InputError, match="y_test cannot be read: it holds Python objects, which are never loaded"
    ):
        build("npz", path=str(path), validation=10)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (np.arange(40) % 4, None),
        (np.arange(40) % 4 + 1, "classes 0 … 4, label 0 never occurs; labels are counted from 0"),
        (np.arange(40) % 3 * 18, "labels 1, 2, 3, 4, 5, … (29 more) never occur; number"),
    ],
)
def test_labels_that_never_occur_are_reported(tmp_path, labels, said):
    path = save_npz(tmp_path / "a.npz", y_train=labels, y_test=labels[:10])
    remarks = build("npz", path=str(path), validation=10).remarks
    assert len(remarks) == (said is not None)
    assert said is None or (
        said in remarks[0] and remarks[0].startswith(f"data.path={path}: y_train: of the ")
    )


def test_targets_that_are_no_labels_have_none(tmp_path):
    path = save_npz(tmp_path / "a.npz", y_train=np.ones(40), y_test=np.ones(10))
    assert build("npz", path=str(path), validation=10).remarks == ()


FIRST, LAST = (3, 6, 5), (6, 5, 3)


@pytest.mark.parametrize(
    ("layout", "shape", "taken", "said"),
    [
        ("auto", LAST, FIRST, False),
        ("auto", FIRST, FIRST, True),
        ("channels_first", FIRST, FIRST, False),
        ("channels_last", FIRST, (5, 3, 6), False),
        ("channels_first", LAST, LAST, False),
        ("auto", (6, 6, 9), (9, 6, 6), True),
        ("auto", (1, 3, 3), (3, 1, 3), False),
    ],
)
def test_the_axis_of_channels_is_recognised(tmp_path, layout, shape, taken, said):
    x = np.random.RandomState(0).randint(0, 256, (40, *shape)).astype(np.uint8)
    path = save_npz(tmp_path / "a.npz", x_train=x, x_test=x[:10])
    data = build("npz", path=str(path), validation=10, layout=layout)
    assert data.task.input_shape == taken
    assert ("images of shape" in "".join(data.remarks)) == said


def test_channels_first_are_the_same_images(tmp_path):
    last = colour_arrays()
    moved = {name: np.moveaxis(getattr(last, name), 3, 1) for name in ("x_train", "x_test")}
    sets = [
        build("npz", path=str(save_npz(tmp_path / f"{number}.npz", **changed)), validation=10)
        for number, changed in enumerate(({}, moved))
    ]
    assert torch.equal(*(next(iter(data.train.in_order(99)))[0] for data in sets))


def test_a_layout_without_channels_is_refused(tmp_path):
    path = save_npz(tmp_path / "a.npz", x_train=ONES, x_test=ONES[:10])
    with pytest.raises(InputError, match="data.layout=channels_first: has no effect"):
        build("npz", path=str(path), validation=10, layout="channels_first")
