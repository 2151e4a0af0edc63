"""Stacked tangents: who owns their memory, and how groups that start later join them."""

from __future__ import annotations

import pytest
import torch

from gnewton.summary import Summarizer, summarize
from gnewton.summary.tangent.tangent import Rows, total

from . import zoo
from .test_zoo import differences


@pytest.mark.parametrize("name", zoo.DISTINCT)
def test_memory_that_held_something_else_changes_no_number(name, monkeypatch):
    """Every new stack begins as NaN."""
    model, loss_fn, inputs, targets, direction = zoo.make(name)
    partition = zoo.partitions(model)["per_tensor"]
    slow = summarize(model, loss_fn, inputs, targets, partition, direction, engine="reference")
    summarizer = Summarizer(model, loss_fn, partition, engine="tangent")
    state = torch.get_rng_state()
    summarizer.summarize(inputs, targets, direction)  # traces, as the model allocates
    empty = torch.Tensor.new_empty
    monkeypatch.setattr(
        torch.Tensor,
        "new_empty",
        lambda like, shape, **options: empty(like, shape, **options).fill_(torch.nan),
    )
    for _ in range(2):
        torch.set_rng_state(state)  # the same dropout masks
        fast = summarizer.summarize(inputs, targets, direction)
        assert max(differences(fast, slow)) < 1e-10


def test_merging_several_parts_takes_new_memory_which_the_rows_own():
    single = Rows((0,), [torch.ones(1, 2)], owned=False)
    assert single.merge() is single.parts[0]
    assert not single.owned
    parts = [torch.ones(1, 2), torch.zeros(2, 2)]
    rows = Rows((0, 1, 4), parts, owned=False)
    reader = rows.borrowed()
    assert reader.merge().tolist() == [[1, 1], [0, 0], [0, 0]]
    assert reader.owned
    assert rows.parts is parts, "a reader's merge leaves the other rows as they are"
    assert not rows.owned


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
    assert joined.merge().data_ptr() == room.data_ptr()
    assert joined.merge()[:, 0].tolist() == [1.0, 1.0, 2.0, 3.0]
    viewed = joined.map(lambda rows: rows.reshape(len(rows), 2, 1), fresh=False)
    assert viewed.merge().shape == (4, 2, 1)
    assert viewed.room.shape == (5, 2, 1)
    assert joined.borrowed().room is None  # another reader must not write there
    assert not joined.shared().owned
    assert joined.owned, "a view of the rows changes nothing of theirs"
    early = Rows((0, 1), [room[:2]], owned=False, room=room)
    assert not total([early, *late]).owned  # somebody else still reads the early rows
    crowded = Rows((0, 1), [room[:2]], owned=True, room=room[:3])
    assert len(total([crowded, *late]).parts) == 3
