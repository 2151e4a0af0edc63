"""The values that an argument ``partition=`` may have."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import nn

from gnewton import Partition
from gnewton.errors import InputError
from gnewton.partition import NAMED, PARTITIONS, chosen_partition


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def test_every_scheme_without_options_has_its_name() -> None:
    plain = {name for name, recipe in PARTITIONS.items() if len(dataclasses.fields(recipe)) == 1}  # type: ignore[arg-type]
    assert plain == set(NAMED)
    for name in plain - {"per_head"}:  # this network has no attention
        assert chosen_partition(network(), name) == PARTITIONS[name](name=name).build(network())


CHOICES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "none": (None, ("0.weight", "0.bias", "2.weight", "2.bias")),
    "partition": (Partition.single(network()), ("all",)),
    "patterns": (["^0", "^2"], ("^0", "^2")),
    "named patterns": ({"below": "^0", "above": "^2"}, ("below", "above")),
    "names": ([["0.weight", "0.bias"], ["2.weight", "2.bias"]], ("0.weight", "2.weight")),
    "named names": ({"a": ("0.weight", "2.weight"), "b": ["0.bias", "2.bias"]}, ("a", "b")),
}


@pytest.mark.parametrize("form", CHOICES)
def test_forms(form: str) -> None:
    choice, names = CHOICES[form]
    assert chosen_partition(network(), choice).names == names


WRONG: dict[str, tuple[Any, str]] = {
    "unknown": (
        "by_layers",
        "partition=by_layers: must be a Partition, one of per_tensor, .*did you mean",
    ),
    "counted": ("blocks", r"partition=blocks: .*; pass Partition.blocks\(model, k\)$"),
    "number": (4, "partition=4: must be a Partition, one of per_tensor"),
    "mixed": (["^0", ["2.weight"]], "partition=<list>: must be a Partition"),
    "method": (Partition.single, "partition=<method>: must be a Partition"),
    "unmatched": (["^0"], "no pattern matches 2.weight, 2.bias"),
}


@pytest.mark.parametrize("form", WRONG)
def test_other_values_are_refused_in_one_line(form: str) -> None:
    choice, message = WRONG[form]
    with pytest.raises(InputError, match=message):
        chosen_partition(network(), choice)
