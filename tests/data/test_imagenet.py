"""A folder tree through workers: the same purity of orders as in memory."""

from __future__ import annotations

import random
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gnewton.data.image_folders import ImageFiles, crop_box
from gnewton.errors import InputError
from gnewton.tasks import Classification
from tests.data.cases import CPU, build, recipe, same

SMALL = {"validation": 4, "size": 8, "resize": 10, "workers": 0}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Three classes, 7 training and 2 test images each, of several sizes, one of them grey."""
    root = tmp_path_factory.mktemp("tree")
    draw = np.random.RandomState(0)
    for part, count in (("train", 7), ("val", 2)):
        for label in ("ant", "bee", "cat"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = draw.randint(0, 256, (12 + index, 20 - index, 3)).astype(np.uint8)
                Image.fromarray(pixels if index else pixels[..., 0]).save(folder / f"{index}.png")
    return root


def test_validation_is_held_out_of_train_and_val_is_the_test(tree):
    data = build("imagenet", root=str(tree), **SMALL)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [17, 4, 6]
    paths = [path for part in (data.train, data.validation) for path, _ in part.files.files]
    assert sorted(paths) == sorted(str(path) for path in (tree / "train").rglob("*.png"))
    assert data.task == Classification(input_shape=(3, 8, 8), outputs=3)
    again = build("imagenet", root=str(tree), seed=9, subset=5, **SMALL)
    assert again.validation.files.files == data.validation.files.files
    assert again.train.files.files == data.train.files.files[:5]


def test_batches_have_the_right_shape_and_labels(tree):
    data = build("imagenet", root=str(tree), **SMALL)
    batches = list(data.train.epoch(0, 5))
    assert [tuple(inputs.shape) for inputs, _ in batches] == [(5, 3, 8, 8)] * 3 + [(2, 3, 8, 8)]
    assert batches[0][0].dtype == torch.float32
    assert batches[0][1].dtype == torch.int64
    _, labels = next(data.test.in_order(6))
    assert labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert sum(len(labels) for _, labels in data.test.in_order(4, limit=5)) == 5


@pytest.mark.parametrize("skip", [0, 2, 3])
def test_skipping_gives_the_tail_of_the_same_epoch(tree, skip):
    data = build("imagenet", root=str(tree), **SMALL)
    whole = list(data.train.epoch(1, 5))
    assert same(whole[skip:], list(data.train.epoch(1, 5, skip=skip)))
    assert not same(whole, list(data.train.epoch(2, 5)))


@pytest.mark.parametrize("position", [0, 2, 4, 9])
def test_a_stream_can_be_entered_anywhere(tree, position):
    train = build("imagenet", root=str(tree), **SMALL).train
    expected = list(islice(train.stream(4, seed=3), position + 3))[position:]
    stream = train.stream(4, seed=3)
    next(stream)
    stream.position = position
    assert same(expected, list(islice(stream, 3)))
    assert stream.position == position + 3


def test_workers_change_nothing(tree):
    alone = build("imagenet", root=str(tree), **SMALL)
    helped = build("imagenet", root=str(tree), **{**SMALL, "workers": 2})
    assert same(list(alone.train.epoch(0, 5)), list(helped.train.epoch(0, 5)))
    assert same(
        list(islice(alone.train.stream(4, seed=1), 5)), list(islice(helped.train.stream(4, seed=1), 5))
    )


def test_augmentation_is_a_function_of_the_seed(tree):
    data = build("imagenet", root=str(tree), **SMALL)
    files = data.train.files
    assert torch.equal(files[0, 5][0], files[0, 5][0])
    assert len({files[0, seed][0].numpy().tobytes() for seed in range(20)}) == 20
    plain = build("imagenet", root=str(tree), augment__resized_crop=False, augment__flip=False, **SMALL)
    (left, _), (right, _) = next(plain.train.epoch(0, 17)), next(plain.train.epoch(1, 17))
    assert torch.equal(left.flatten(1).sort(0)[0], right.flatten(1).sort(0)[0])


def test_flips_mirror_about_half(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)).save(path)
    files = ImageFiles([(str(path), 0)], size=8, resize=8, resized_crop=False, flip=True)
    plain = files[0, -1][0]
    flipped = [torch.equal(files[0, seed][0], plain.flip(2)) for seed in range(200)]
    assert 70 < sum(flipped) < 130
    assert all(torch.equal(files[0, seed][0], plain) for seed in range(200) if not flipped[seed])


@pytest.mark.parametrize(("height", "width"), [(50, 80), (1, 200), (200, 1), (1, 1), (3, 3)])
def test_crop_boxes_lie_in_the_image(height, width):
    draw = random.Random(0)
    for _ in range(500):
        top, left, box_height, box_width = crop_box(height, width, draw)
        assert box_height > 0
        assert box_width > 0
        assert 0 <= top <= height - box_height
        assert 0 <= left <= width - box_width
        if min(height, width) > 10:
            assert 0.07 < box_height * box_width / (height * width) <= 1
            assert 0.7 < box_width / box_height < 1.4


@pytest.mark.parametrize("batch_size", [None, 0, 18])
def test_batch_sizes_that_cannot_be_served_are_refused(tree, batch_size):
    train = build("imagenet", root=str(tree), **SMALL).train
    with pytest.raises(InputError, match="batch_size="):
        train.stream(batch_size, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named_in_one_line(tree, tmp_path, workers):
    root = tmp_path / "tree"
    for path in tree.rglob("*.png"):
        copy = root / path.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    bad = root / "val" / "bee" / "1.png"
    bad.write_bytes(bad.read_bytes()[:60])
    data = build("imagenet", root=str(root), **{**SMALL, "workers": workers})
    with pytest.raises(InputError) as raised:
        list(data.test.in_order(6))
    assert str(raised.value).startswith(f"{bad}: not a readable image")
    assert "\n" not in str(raised.value)


def test_trees_that_do_not_fit_are_refused(tree, tmp_path):
    def message(root: Path) -> str:
        with pytest.raises(InputError) as raised:
            recipe("imagenet", root=str(root), **SMALL).build(CPU, torch.float32, 0)
        return str(raised.value)

    assert re.search(
        r"data\.root=.*: there is no folder .*train, with a folder of images",
        message(tmp_path),
    )
    (tmp_path / "train" / "ant").mkdir(parents=True)
    assert "train must have a folder of images for each class" in message(tmp_path)
    for part, label in (("train", "ant"), ("val", "dog")):
        (tmp_path / part / label).mkdir(parents=True, exist_ok=True)
        source = tree / "train" / "ant" / "1.png"
        (tmp_path / part / label / "1.png").write_bytes(source.read_bytes())
    assert "train and val must have the same classes; one alone has ant" in message(tmp_path)
    with pytest.raises(InputError, match=r"data\.validation=21: must be < 21"):
        build("imagenet", root=str(tree), **{**SMALL, "validation": 21})
