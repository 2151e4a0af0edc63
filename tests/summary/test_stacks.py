"""Memory that is used again holds no two stacks at a time, is bounded, and changes no number."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition
from gnewton.summary import Summarizer, stacks, summarize
from gnewton.summary.stacks import Stacks
from gnewton.summary.tangents import Rows, total

from . import zoo
from .test_zoo import differences

LIKE = torch.empty(0, dtype=torch.float64)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(stacks, "LEAST", 1)


def test_a_piece_is_used_again_once_nothing_lies_in_it():
    memory = Stacks()
    first = memory.empty((2, 3, 5), LIKE)
    assert first.shape == (2, 3, 5)
    assert first.dtype == torch.float64
    assert first.is_contiguous()
    assert first.data_ptr() % stacks.ALIGNED == 0
    at, view = first.data_ptr(), first[1].t()
    other = memory.empty((2, 3, 5), LIKE)
    assert other.data_ptr() != at
    del first
    assert memory.empty((2, 3, 5), LIKE).data_ptr() not in (at, other.data_ptr())  # the view still reads it
    del view
    assert memory.empty((2, 2, 5), LIKE.float()).data_ptr() == at  # smaller, of another precision


def test_of_the_free_pieces_only_the_largest_outlives_a_larger_stack():
    memory = Stacks()
    held = [memory.empty((1, size), LIKE) for size in (400, 100, 300, 200)]
    kept = held.pop(1).data_ptr(), held[0].data_ptr()
    inner, last = held.pop(1), held.pop(1)
    del inner, last  # free: 100, 200, 300; in use: 400
    large = memory.empty((1, 500), LIKE)
    assert memory.bytes == 8 * (300 + 400 + 500) + 3 * stacks.ALIGNED
    assert large.data_ptr() not in kept
    memory.release()
    assert memory.bytes == 0
    large.fill_(1.0)
    assert large.sum() == 500


def test_small_stacks_and_those_of_other_devices_are_left_to_torch(monkeypatch):
    memory = Stacks()
    assert memory.empty((3, 4), LIKE.to("meta")).device.type == "meta"
    monkeypatch.setattr(stacks, "LEAST", 1000)
    assert memory.empty((3, 4), LIKE).shape == (3, 4)
    assert memory.bytes == 0


@pytest.mark.parametrize("name", zoo.CASES)
def test_memory_that_held_something_else_changes_no_number(name, monkeypatch):
    """Every stack begins as NaN; the second and third summaries work in the pieces of the first."""
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partition = zoo.partitions(model)["per_tensor"]
    slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
    empty = Stacks.empty
    monkeypatch.setattr(Stacks, "empty", lambda *args: empty(*args).fill_(torch.nan))
    state = torch.get_rng_state()
    summarizer = Summarizer(model, loss_fn, partition, engine="tangent")
    for _ in range(3):
        torch.set_rng_state(state)  # the same dropout masks
        fast = summarizer.summarize(inputs, targets, direction)
        assert max(differences(fast, slow)) < 1e-10


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.ReLU])
def test_pieces_stay_within_the_estimate_of_the_tangents(activation):
    torch.manual_seed(0)
    widths = [10, 40, 20, 80, 30, 30, 60]
    model = nn.Sequential(*zoo.linear(*widths, activation=activation), nn.Linear(60, 3)).double()
    inputs, targets = torch.randn(16, 10, dtype=torch.float64), torch.arange(16) % 3
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    summarizer = Summarizer(model, F.cross_entropy, Partition.per_tensor(model), engine="tangent")
    held = []
    for _ in range(3):
        summarizer.summarize(inputs, targets, direction)
        held.append(summarizer.tangents._stacks.bytes)
    (trace,) = summarizer.tangents.traces
    assert 0 < max(held) <= trace.bytes


def test_rows_that_join_fill_the_room_behind_the_others():
    room = torch.full((5, 2), torch.nan)
    room[:2] = 1.0
    early = Rows((0, 1), [room[:2]], owned=True, room=room)
    late = [
        Rows((3,), [torch.full((1, 2), 3.0)], owned=False),
        Rows((2,), [torch.full((1, 2), 2.0)], owned=False),
    ]
    joined = total([late[0], early, late[1]])
    assert joined.groups == (0, 1, 2, 3)
    assert len(joined.parts) == 1
    assert joined.data.data_ptr() == room.data_ptr()
    assert joined.data[:, 0].tolist() == [1.0, 1.0, 2.0, 3.0]
    viewed = joined.map(lambda rows: rows.reshape(len(rows), 2, 1), fresh=False)
    assert viewed.data.shape == (4, 2, 1)
    assert viewed.room.shape == (5, 2, 1)
    assert joined.borrowed().room is None  # another reader must not write there
    early = Rows((0, 1), [room[:2]], owned=False, room=room)
    assert not total([early, *late]).owned  # somebody else still reads the early rows
    crowded = Rows((0, 1), [room[:2]], owned=True, room=room[:3])
    assert len(total([crowded, *late]).parts) == 3
