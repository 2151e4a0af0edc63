"""The partition itself: what from_names accepts and refuses, and what it prints."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gnewton.errors import InputError
from gnewton.partition import Partition

MODEL = nn.Sequential(*(nn.Linear(1, 2) if i % 2 == 0 else nn.Linear(2, 1) for i in range(4)))
NAMES = [name for name, _ in MODEL.named_parameters()]

partitions = st.lists(st.integers(0, 3), min_size=len(NAMES), max_size=len(NAMES)).map(
    lambda owners: [
        [name for name, owner in zip(NAMES, owners, strict=True) if owner == group]
        for group in sorted(set(owners))
    ]
)


@given(groups=partitions, data=st.data())
def test_any_disjoint_cover_is_accepted_in_its_order(groups: list[list[str]], data: st.DataObject) -> None:
    shuffled = [data.draw(st.permutations(group)) for group in groups]
    partition = Partition.from_names(MODEL, shuffled)
    assert [list(group.parameters) for group in partition] == groups
    assert partition.names == tuple(group[0] for group in shuffled)
    assert all(name in partition.groups[partition.index[name]].parameters for name in NAMES)
    assert sum(group.size for group in partition) == sum(p.numel() for p in MODEL.parameters())


@given(groups=partitions, data=st.data())
def test_a_gap_is_refused_by_name(groups: list[list[str]], data: st.DataObject) -> None:
    lost = data.draw(st.sampled_from(NAMES))
    rest = [group for group in ([name for name in group if name != lost] for group in groups) if group]
    message = f"no group holds {lost}" if rest else "no group"
    with pytest.raises(InputError, match=re.escape(message)):
        Partition.from_names(MODEL, rest)


@given(groups=partitions, data=st.data())
def test_an_overlap_is_refused_by_name(groups: list[list[str]], data: st.DataObject) -> None:
    again = data.draw(st.sampled_from(NAMES))
    where = data.draw(st.integers(0, len(groups) - 1))
    doubled = [[*group, again] if position == where else group for position, group in enumerate(groups)]
    with pytest.raises(InputError, match=re.escape(f"'{again}' is ") + "(in both|twice in)"):
        Partition.from_names(MODEL, doubled)


@given(groups=partitions, unknown=st.text().filter(lambda text: text not in NAMES), data=st.data())
def test_an_unknown_name_is_refused_by_name(
    groups: list[list[str]], unknown: str, data: st.DataObject
) -> None:
    where = data.draw(st.integers(0, len(groups) - 1))
    wrong = [[*group, unknown] if position == where else group for position, group in enumerate(groups)]
    with pytest.raises(InputError, match=re.escape(f"names the unknown parameter '{unknown}'")):
        Partition.from_names(MODEL, wrong)


@given(groups=partitions, data=st.data())
def test_an_empty_group_is_refused(groups: list[list[str]], data: st.DataObject) -> None:
    where = data.draw(st.integers(0, len(groups)))
    with pytest.raises(InputError, match=re.escape(f"group '#{where}' is empty")):
        Partition.from_names(MODEL, [*groups[:where], [], *groups[where:]])


def test_messages_help_with_spelling_frozen_and_tied_parameters() -> None:
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    tied[1].weight = tied[0].weight
    tied[1].bias.requires_grad_(False)
    for name, message in {
        "0.wieght": "did you mean '0.weight'?",
        "1.weight": "it is tied to '0.weight', under which it is grouped",
        "1.bias": "names '1.bias', which is frozen",
    }.items():
        with pytest.raises(InputError, match=re.escape(message)):
            Partition.from_names(tied, [[name]])
    assert Partition.from_names(tied, {"a": ["0.weight", "0.bias"]}).names == ("a",)


def test_an_extension_adds_one_group_and_may_leave_parameters_out() -> None:
    model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1), nn.Linear(1, 1))
    model[1:].requires_grad_(False)
    first = Partition.single(model)
    model.requires_grad_(True)
    second = first.extended(model, ["1.bias", "1.weight"])
    assert second.names == ("all", "1.bias")
    assert (second.groups[1].parameters, second.groups[1].size) == (("1.weight", "1.bias"), 3)
    third = second.extended(model, ["2.weight", "2.bias"], "head")
    assert third == Partition.from_names(
        model,
        {"all": ["0.weight", "0.bias"], "1.bias": ["1.weight", "1.bias"], "head": ["2.weight", "2.bias"]},
    )
    with pytest.raises(InputError, match=re.escape("'0.bias' is in both 'all' and 'x'")):
        first.extended(model, ["0.bias"], "x")
    with pytest.raises(InputError, match="group '#1' is empty"):
        first.extended(model, [])


def test_groups_of_one_name_are_refused() -> None:
    group = Partition.single(MODEL).groups[0]
    with pytest.raises(InputError, match="two groups are called 'all'"):
        Partition([group, group])


def test_equality_and_texts() -> None:
    partition = Partition.weights_biases(MODEL)
    assert partition == Partition.from_names(MODEL, {"weights": NAMES[0::2], "biases": NAMES[1::2]})
    assert hash(partition) == hash(Partition.weights_biases(MODEL))
    assert partition != Partition.single(MODEL)
    assert repr(partition) == "Partition(2 groups of 14 parameters)"
    assert partition.describe().splitlines() == [
        "2 groups, 14 parameters",
        "  weights             8  0.weight, 1.weight, 2.weight, 3.weight",
        "  biases              6  0.bias, 1.bias, 2.bias, 3.bias",
    ]
    assert Partition.single(MODEL).describe().startswith("1 group, 14 parameters")
