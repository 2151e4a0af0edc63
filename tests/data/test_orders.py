"""Orders are pure functions: seed, epoch and position determine every batch."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gnewton.data.tensors import Augmenter, TensorSplit, mixed_seed
from gnewton.errors import InputError
from tests.data.cases import same, split

AUGMENTERS = [None, Augmenter(crop_padding=2, flip=True)]


def labels(batches):
    return torch.cat([targets for _, targets in batches]).tolist()


@pytest.mark.parametrize("augmenter", AUGMENTERS)
@pytest.mark.parametrize("batch_size", [1, 7, 23, 100, None])
def test_an_epoch_visits_every_sample_once(augmenter, batch_size):
    samples = split(augmenter=augmenter)
    batches = list(samples.epoch(0, batch_size))
    assert sorted(labels(batches)) == list(range(23))
    assert len(batches) == samples.steps(batch_size)
    sizes = [len(inputs) for inputs, _ in batches]
    assert all(size == (batch_size or 23) for size in sizes[:-1])


@pytest.mark.parametrize("augmenter", AUGMENTERS)
@pytest.mark.parametrize("skip", [0, 1, 3, 4])
def test_skipping_gives_the_tail_of_the_same_epoch(augmenter, skip):
    samples = split(augmenter=augmenter)
    whole = list(samples.epoch(2, 7))
    assert same(whole[skip:], list(split(augmenter=augmenter).epoch(2, 7, skip=skip)))


def test_skipping_does_not_compute_what_is_skipped():
    samples = split()
    seen = []
    samples.scaling = lambda stored: seen.append(len(stored)) or stored.float()
    list(samples.epoch(0, 7, skip=3))
    assert seen == [2]


def test_orders_differ_between_epochs_seeds_and_streams():
    samples = split()
    orders = [
        labels(samples.epoch(0, 23)),
        labels(samples.epoch(1, 23)),
        labels(split(seed=6).epoch(0, 23)),
        labels([next(samples.stream(23, seed=5))]),
        labels([next(samples.stream(23, seed=6))]),
        list(range(23)),
    ]
    assert len({tuple(order) for order in orders}) == len(orders)


def test_an_order_does_not_depend_on_the_batch_size():
    samples = split(augmenter=Augmenter(1, True))
    for left, right in zip(
        torch.cat([inputs for inputs, _ in samples.epoch(3, 5)]), next(samples.epoch(3, None))[0], strict=True
    ):
        assert torch.equal(left, right)


def test_a_global_seed_or_draw_changes_nothing():
    samples = split(augmenter=Augmenter(1, True))
    torch.manual_seed(1)
    before = list(samples.epoch(0, 5))
    torch.rand(3)
    assert same(before, list(samples.epoch(0, 5)))


@pytest.mark.parametrize("augmenter", AUGMENTERS)
@pytest.mark.parametrize("position", [0, 1, 2, 3, 4, 11, 3000])
def test_a_stream_can_be_entered_anywhere(augmenter, position):
    samples = split(augmenter=augmenter)
    if position < 100:
        running = samples.stream(7, seed=9)
        expected = list(islice(running, position + 4))[position:]
    else:
        running = samples.stream(7, seed=9)
        running.position = position - 5
        expected = list(islice(running, 9))[5:]
    entered = samples.stream(7, seed=9)
    next(entered)
    entered.position = position
    assert same(expected, list(islice(entered, 4)))
    assert entered.position == position + 4 == running.position


def test_a_stream_has_full_batches_only_and_no_repeats_within_a_pass():
    batches = list(islice(split().stream(7, seed=1), 30))
    assert {len(targets) for _, targets in batches} == {7}
    for start in range(0, 30, 3):
        seen = labels(batches[start : start + 3])
        assert len(set(seen)) == 21


def test_a_stream_over_the_whole_split_is_one_batch_a_pass():
    first, second = islice(split().stream(None, seed=1), 2)
    assert sorted(first[1].tolist()) == sorted(second[1].tolist()) == list(range(23))
    assert first[1].tolist() != second[1].tolist()


def test_a_stream_refuses_batches_larger_than_the_split():
    with pytest.raises(InputError, match=r"batch_size=24: must be <= 23, the samples of the test case"):
        split().stream(24, seed=0)


@pytest.mark.parametrize("size", [0, -3])
def test_batch_sizes_below_one_are_refused_at_the_call(size):
    for call in (
        lambda: split().epoch(0, size),
        lambda: split().stream(size, seed=0),
        lambda: split().in_order(size),
    ):
        with pytest.raises(InputError, match=f"batch_size={size}: must be >= 1"):
            call()


def test_in_order_is_the_stored_order_without_augmentation():
    samples = split(augmenter=Augmenter(2, True))
    batches = list(samples.in_order(10))
    assert labels(batches) == list(range(23))
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), samples.inputs.float() / 255)
    assert labels(samples.in_order(10, limit=12)) == list(range(12))
    assert labels(samples.in_order(10, limit=1000)) == list(range(23))


def test_fetching_a_batch_never_waits_for_the_device():
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    called: set[str] = set()
    samples = split(augmenter=Augmenter(2, True))
    stream = samples.stream(5, seed=0)
    with Watch():
        list(samples.epoch(0, 5))
        list(islice(stream, 9))
        list(samples.in_order(5))
    assert called & {"gather", "index"}
    assert not called & {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"}


def test_mixed_seeds_are_stable_and_distinct():
    assert mixed_seed("epoch", 0, 1) == 5119285417032344837
    assert len({mixed_seed("epoch", seed, epoch) for seed in range(50) for epoch in range(50)}) == 2500


def test_several_inputs_keep_together():
    first, second, targets = torch.arange(10), torch.arange(10, 20), torch.arange(20, 30)
    samples = TensorSplit({"a": first, "b": (second,)}, targets, seed=0, title="a split")
    plain = TensorSplit(first, targets, seed=0, title="a split")
    for whole, alone in ((samples.epoch(1, 4), plain.epoch(1, 4)), (samples.in_order(4), plain.in_order(4))):
        for (inputs, labels), (a, _) in zip(whole, alone, strict=True):
            assert torch.equal(inputs["a"], a)
            assert torch.equal(inputs["b"][0], a + 10)
            assert torch.equal(labels, a + 20)
    with pytest.raises(
        InputError, match=r"a split: its tensors hold \[9, 10\] samples; all must hold the same"
    ):
        TensorSplit((first, second[:9]), targets, seed=0, title="a split")
