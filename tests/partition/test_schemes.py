"""Every scheme on several models: disjoint, covering, in order; names, and every error."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from torch import nn

from gnewton.errors import InputError
from gnewton.partition import PARTITIONS, Partition, PartitionRecipe
from tests.recipes import CONFIGS
from tests.recipes import recipe as made

YAMLS = sorted(path.stem for path in (CONFIGS / "partition").glob("*.yaml"))


def recipe(choice: str, *overrides: str) -> PartitionRecipe:
    built = made(PARTITIONS, "per_tensor", choice, *overrides)
    assert isinstance(built, PartitionRecipe)
    return built


class Tied(nn.Module):
    """The last layer shares the weight of the first; one parameter is frozen, one belongs to the root."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(nn.init.zeros_(nn.Linear(1, 3).weight.detach().flatten()))
        self.first = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.norm.bias.requires_grad_(False)
        self.last = nn.Linear(4, 4)
        self.last.weight = self.first.weight


def chain() -> nn.Module:
    return nn.Sequential(*(nn.Linear(2, 2) for _ in range(5)))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "chain": chain,
    "norm": lambda: nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Linear(3, 3)),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "tied": Tied,
}
SCHEMES: dict[str, Callable[[nn.Module], Partition]] = {
    "per_tensor": Partition.per_tensor,
    "single": Partition.single,
    "weights_biases": Partition.weights_biases,
    "by_layer": Partition.by_layer,
    "blocks": lambda model: Partition.blocks(model, 2),
    "alternate": lambda model: Partition.alternate(model, 2),
    "patterns": lambda model: Partition.patterns(model, ["weight"], rest="others"),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("kind", MODELS)
def test_groups_are_disjoint_covering_ordered_and_sized(kind: str, scheme: str) -> None:
    model = MODELS[kind]()
    partition = SCHEMES[scheme](model)
    trainable = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    held = [name for group in partition for name in group.parameters]
    assert sorted(held) == sorted(trainable)
    order = list(trainable)
    for group in partition:
        assert [order.index(name) for name in group.parameters] == sorted(map(order.index, group.parameters))
        assert group.size == sum(trainable[name] for name in group.parameters)
    assert len(set(partition.names)) == len(partition)


def test_per_tensor_names_groups_after_tensors_in_model_order() -> None:
    assert Partition.per_tensor(Tied()).names == (
        "offset",
        "first.weight",
        "first.bias",
        "norm.weight",
        "last.bias",
    )


def test_weights_biases_drops_the_kinds_a_model_lacks() -> None:
    assert Partition.weights_biases(Tied()).names == ("weights", "biases", "rest")
    assert Partition.weights_biases(chain()).names == ("weights", "biases")
    attention = Partition.weights_biases(nn.MultiheadAttention(4, 2))
    assert attention.groups[0].parameters == ("in_proj_weight", "out_proj.weight")


def test_by_layer_names_groups_after_modules() -> None:
    assert Partition.by_layer(Tied()).names == ("(model)", "first", "norm", "last")


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_blocks_are_consecutive_and_even(k: int) -> None:
    partition = Partition.blocks(chain(), k)
    assert partition.names == tuple(f"block{i}.{kind}" for i in range(k) for kind in ("weights", "biases"))
    layers = [[int(name.split(".")[0]) for name in group.parameters] for group in partition.groups[::2]]
    assert [layer for block in layers for layer in block] == list(range(5))
    assert max(map(len, layers)) - min(map(len, layers)) <= 1


def test_alternate_takes_layers_modulo_k() -> None:
    partition = Partition.alternate(chain(), 2)
    assert {group.name: group.parameters for group in partition} == {
        "alternate0.weights": ("0.weight", "2.weight", "4.weight"),
        "alternate0.biases": ("0.bias", "2.bias", "4.bias"),
        "alternate1.weights": ("1.weight", "3.weight"),
        "alternate1.biases": ("1.bias", "3.bias"),
    }


def test_limits_of_k_are_known_partitions() -> None:
    model = chain()
    assert Partition.alternate(model, 5).groups == tuple(
        type(group)(group.name.replace("block", "alternate"), group.parameters, group.size)
        for group in Partition.blocks(model, 5)
    )
    one = [group.parameters for group in Partition.blocks(model, 1)]
    assert one == [group.parameters for group in Partition.weights_biases(model)]


def test_first_pattern_wins_and_a_mapping_names_the_groups() -> None:
    model = chain()
    groups = Partition.patterns(model, {"head": r"^4\.", "weights": "weight$", "other": "."})
    assert groups.names == ("head", "weights", "other")
    assert groups.groups[0].parameters == ("4.weight", "4.bias")
    assert groups.groups[1].parameters == ("0.weight", "1.weight", "2.weight", "3.weight")


def test_rest_group_is_dropped_where_nothing_is_left() -> None:
    assert Partition.patterns(chain(), ["weight$", "bias$"], rest="rest").names == ("weight$", "bias$")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda m: Partition.blocks(m, 0),
            "partition=blocks: k=0 must be from 1 to 5, the layers of this model",
        ),
        (lambda m: Partition.blocks(m, 6), "partition=blocks: k=6 must be from 1 to 5"),
        (lambda m: Partition.alternate(m, 6), "partition=alternate: k=6 must be from 1 to 5"),
        (lambda m: Partition.patterns(m, ["weight"]), "no pattern matches 0.bias, 1.bias"),
        (
            lambda m: Partition.patterns(m, [".", "conv"]),
            "'conv': no parameter matches; the model has 0.weight",
        ),
        (
            lambda m: Partition.patterns(m, [".", "bias"]),
            "'bias': all it matches belongs to earlier patterns (0.bias",
        ),
        (lambda m: Partition.patterns(m, ["("]), "'(' is no regular expression: "),
        (lambda m: Partition.patterns(m, ["a", "a"]), "an expression is given twice in a, a"),
        (lambda m: Partition.patterns(m, ["weight"], rest="weight"), "the rest group 'weight' is also"),
        (lambda m: Partition.patterns(m, []), "no pattern matches 0.weight"),
        (lambda m: Partition.single(nn.ReLU()), "the model has no trainable parameter"),
        (lambda m: Partition.single(m.requires_grad_(False)), "the model has no trainable parameter"),
    ],
)
def test_errors_name_the_limit_or_the_parameters(
    build: Callable[[nn.Module], Partition], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(chain())


OVERRIDES = {"names": ["partition.groups=[[" + ",".join(f"{i}.weight,{i}.bias" for i in range(5)) + "]]"]}


@pytest.mark.parametrize("choice", YAMLS)
def test_every_yaml_composes_and_builds(choice: str) -> None:
    model = nn.MultiheadAttention(2, 1) if choice == "per_head" else chain()
    partition = recipe(choice, *OVERRIDES.get(choice, [])).build(model)
    assert sum(group.size for group in partition) == sum(p.numel() for p in model.parameters())
    text = (CONFIGS / "partition" / f"{choice}.yaml").read_text(encoding="utf-8")
    assert re.match(r"# \S.*[^.]\n", text)


def test_every_recipe_has_a_yaml() -> None:
    assert PARTITIONS.names() == YAMLS


@pytest.mark.parametrize(
    ("choice", "overrides", "message"),
    [
        ("names", [], "partition.groups=[]: must list the parameters of each group"),
        ("blocks", ["partition.k=0"], "partition.k=0: must be"),
        ("patterns", ["partition.patterns=[]"], "partition.patterns=[]: must hold at least one"),
        ("patterns", ["partition.patterns=['(']"], "partition.patterns=[(]: '(' is no regular expression"),
    ],
)
def test_bad_options_are_refused_with_their_name(choice: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        recipe(choice, *overrides)


def test_command_line_gives_patterns_and_names() -> None:
    built = recipe("patterns", r"partition.patterns=['^[01]\.','^[2-4]\.']", "partition.rest=null").build(
        chain()
    )
    assert built.names == (r"^[01]\.", r"^[2-4]\.")
