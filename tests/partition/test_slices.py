"""Partitions whose groups are slices of parameters: output channels, blocks of rows, attention heads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gnewton import Partition
from gnewton.errors import InputError
from gnewton.partition import Slice, chosen_partition


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))
        self.dense = nn.Linear(4, 4)


MODELS = {
    "dense": lambda: nn.Sequential(nn.Linear(3, 5), nn.LayerNorm(5), nn.Linear(5, 2, bias=False)),
    "convolutions": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 4, 2)),
    "embedding": lambda: nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 3)),
    "packed": lambda: nn.MultiheadAttention(4, 2),
    "separate": Attention,
}
SCHEMES = {
    "per_channel": Partition.per_channel,
    "row_blocks": lambda model: Partition.row_blocks(model, 2),
    "per_head": Partition.per_head,
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", MODELS)
def test_every_entry_is_in_one_group(kind: str, scheme: str) -> None:
    model = MODELS[kind]()
    if scheme == "per_head" and kind not in ("packed", "separate"):
        with pytest.raises(InputError, match="partition=per_head: no attention is recognised"):
            SCHEMES[scheme](model)
        return
    partition = SCHEMES[scheme](model)
    count = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    sizes = torch.zeros(len(partition))
    for s, group in enumerate(partition):
        for name in group.parameters:
            count[name] += 1
            sizes[s] += count[name].numel()
        for piece in group.slices:
            for start, stop in piece.ranges:
                part = count[piece.parameter].narrow(piece.axis, start, stop - start)
                part += 1
                sizes[s] += part.numel()
    assert all(bool((times == 1).all()) for times in count.values())
    assert sizes.tolist() == [group.size for group in partition]


def test_names_and_what_a_channel_holds() -> None:
    partition = Partition.per_channel(MODELS["convolutions"]())
    assert partition.names == ("0[0]", "0[1]", "0[2]", "1[0]", "1[1]", "1[2]", "1[3]")
    assert partition.groups[4].slices == (Slice("1.weight", 1, ((1, 2),)), Slice("1.bias", 0, ((1, 2),)))
    assert Partition.row_blocks(MODELS["dense"](), 4).names[:2] == ("0[0:4]", "0[4:5]")
    assert Partition.per_channel(MODELS["embedding"]()).groups[2].slices == (Slice("0.weight", 1, ((2, 3),)),)


@pytest.mark.parametrize("kind", ["packed", "separate"])
def test_a_head_holds_its_rows_and_its_columns(kind: str) -> None:
    partition = Partition.per_head(MODELS[kind]())
    first = {piece.parameter: (piece.axis, piece.ranges) for piece in partition.groups[0].slices}
    outward = "out_proj.weight" if kind == "packed" else "dense.weight"
    assert first[outward] == (1, ((0, 2),))
    if kind == "packed":
        assert first["in_proj_weight"] == first["in_proj_bias"] == (0, ((0, 2), (4, 6), (8, 10)))
    else:
        assert all(
            first[f"{name}.{part}"] == (0, ((0, 2),))
            for name in ("query", "key")
            for part in ("weight", "bias")
        )
    assert partition.names[:2] == ("head0", "head1")
    assert partition.groups[-1].parameters == (outward.replace("weight", "bias"),)


def test_a_joint_projection_by_head_is_cut_by_head() -> None:
    model = nn.Module()
    model.num_heads = 2
    model.query_key_value, model.dense = nn.Linear(4, 12), nn.Linear(4, 4)
    first = Partition.per_head(model).groups[0].slices
    assert first[0] == Slice("query_key_value.weight", 0, ((0, 6),))


def test_the_description_of_many_groups_is_short() -> None:
    text = Partition.per_channel(nn.Linear(2, 500)).describe()
    assert len(text.splitlines()) < 50
    assert "more groups" in text


whole = ("0.weight", "0.bias")
WRONG: dict[str, tuple[dict[str, list[Any]], str]] = {
    "gap": ({"a": [Slice("0.weight", 0, ((0, 1), (2, 3)))], "b": ["0.bias"]}, "leave a gap"),
    "short": ({"a": [Slice("0.weight", 0, ((0, 2),))], "b": ["0.bias"]}, "hold 2 of 3 indices"),
    "overlap": (
        {"a": [Slice("0.weight", 0, ((0, 2),))], "b": ["0.bias", Slice("0.weight", 0, ((1, 3),))]},
        r"'b' holds 0.weight\[1:3\], part of which is held",
    ),
    "axes": (
        {"a": [Slice("0.weight", 0, ((0, 2),))], "b": ["0.bias", Slice("0.weight", 1, ((0, 2),))]},
        "cut along several axes",
    ),
    "both": ({"a": [*whole], "b": [Slice("0.bias", 0, ((0, 3),))]}, "is in both 'a' and 'b'"),
    "missing": ({"a": ["0.weight"]}, "no group holds 0.bias"),
    "axis": ({"a": [Slice("0.weight", -1, ((0, 2),)), "0.bias"]}, "axis=-1 .* must be from 0 to 1"),
    "nothing": ({"a": [Slice("0.weight", 0, ((1, 1),)), "0.bias"]}, "0 <= start < stop <= 3"),
    "beyond": ({"a": [Slice("0.weight", 0, ((0, 4),)), "0.bias"]}, "0 <= start < stop <= 3"),
}


@pytest.mark.parametrize("case", WRONG)
def test_slices_that_do_not_fit_are_refused(case: str) -> None:
    groups, said = WRONG[case]
    with pytest.raises(InputError, match=said):
        Partition.from_slices(nn.Sequential(nn.Linear(2, 3)), groups)


def test_rows_are_counted_and_named() -> None:
    with pytest.raises(InputError, match="rows=0 must be at least 1"):
        Partition.row_blocks(nn.Linear(2, 2), 0)
    with pytest.raises(InputError, match=r"pass Partition.row_blocks\(model, rows\)"):
        chosen_partition(nn.Linear(2, 2), "row_blocks")
