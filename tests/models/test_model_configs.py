"""Every YAML composes, builds on data it is made for, and hands the command line's values to its recipe."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from gnewton.errors import InputError
from gnewton.models import MODELS

from .cases import CIFAR, CONFIGS, IMAGENET, NOTHING, PIXELS, POINTS, TOKENS, YAMLS, recipe

TASKS = {"autoencoder": PIXELS, "rosenbrock": NOTHING, "transformer": TOKENS, "pinn": POINTS}

# Parameters of the published networks on 1,000 classes, from torchvision's tables.
SIZES = {
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
}
VGG_SIZES = {"vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544, "vgg19": 143_667_240}


@pytest.mark.parametrize("choice", YAMLS)
def test_every_yaml_composes_builds_and_describes_itself(choice: str) -> None:
    with torch.device("meta"):
        model = recipe(choice).build(TASKS.get(choice, CIFAR))
    assert sum(p.numel() for p in model.parameters()) > 0
    text = (CONFIGS / "model" / f"{choice}.yaml").read_text(encoding="utf-8")
    assert re.match(r"# [A-Z].*[^.]\n", text)


def test_every_recipe_has_a_yaml() -> None:
    recipes = {choice: recipe(choice) for choice in YAMLS}
    own = {model for _, model in MODELS.items() if model.__module__.startswith("gnewton.")}  # no other test's
    assert {type(model) for model in recipes.values()} == own
    assert all(model.name == choice for choice, model in recipes.items())


@pytest.mark.parametrize(("choice", "size"), SIZES.items())
def test_residual_networks_have_the_published_sizes(choice: str, size: int) -> None:
    with torch.device("meta"):
        model = recipe(choice).build(IMAGENET)
    assert sum(p.numel() for p in model.parameters()) == size


@pytest.mark.parametrize(("choice", "size"), VGG_SIZES.items())
def test_vgg_has_the_published_size_with_the_published_classifier(choice: str, size: int) -> None:
    with torch.device("meta"):
        model = recipe(choice, "model.classifier=[2*4096]").build(IMAGENET)
    assert sum(p.numel() for p in model.parameters()) == size


def test_default_vision_transformer_has_about_a_million_parameters() -> None:
    with torch.device("meta"):
        model = recipe("vit").build(CIFAR)
    assert 0.9e6 < sum(p.numel() for p in model.parameters()) < 1.1e6


@pytest.mark.parametrize(
    ("override", "widths"),
    [
        ("model.widths=[1024,200,100]", [1024, 200, 100]),
        ("model.widths=[20*1024]", [1024] * 20),
        ("model.widths=['2*8',5]", [8, 8, 5]),
        ("model.widths=['2 * 8']", [8, 8]),
        ("model.widths=[]", []),
    ],
)
def test_widths_from_the_command_line(override: str, widths: list[int]) -> None:
    with torch.device("meta"):
        model = recipe("mlp", override).build(CIFAR)
    assert [layer.out_features for layer in model if isinstance(layer, torch.nn.Linear)] == [*widths, 10]


@pytest.mark.parametrize(
    ("choice", "override", "message"),
    [
        ("mlp", "model.widths=[0]", "model.widths=[0]: '0' is not a width"),
        ("mlp", "model.widths=[-3]", "'-3' is not a width"),
        ("mlp", "model.widths=[1.5]", "'1.5' is not a width"),
        ("mlp", "model.widths=['0*8']", "'0*8' is not a width"),
        ("mlp", "model.widths=['3*']", "'3*' is not a width"),
        ("mlp", "model.widths=['3*4*5']", "'3*4*5' is not a width"),
        ("mlp", "model.widths=[wide]", "'wide' is not a width"),
        ("mlp", "model.widths=['99999*8']", "'99999*8' is not a width"),
        ("mlp", "model.widths=[8,true]", "'True' is not a width"),
        ("mlp", "model.widths=['٣']", "is not a width"),
        ("vgg11", "model.classifier=[x]", "model.classifier=[x]: 'x' is not a width"),
        ("autoencoder", "model.widths=[x]", "model.widths=[x]: 'x' is not a width"),
        ("autoencoder", "model.code=0", "model.code=0: must be"),
        ("mlp", "model.activation=tan", "model.activation=tan: must be one of identity, tanh"),
        ("mlp", "model.sigma_w=0", "model.sigma_w=0.0: must be a finite number > 0"),
        ("mlp", "model.sigma_w=nan", "model.sigma_w=nan: must be a finite number"),
        ("lenet", "model.pooling=min", "model.pooling=min: must be one of max, average"),
        ("vgg11", "model.layout=C", "model.layout=C: must be one of A, B, D, E"),
        ("resnet18", "model.depth=20", "model.depth=20: must be one of 18, 34, 50, 101, 152"),
        ("vit", "model.heads=3", "model.width=128: must be a multiple of heads=3"),
        ("vit", "model.dropout=1", "model.dropout=1.0: must be a finite number >= 0 and < 1"),
        ("vit", "model.patch_size=0", "model.patch_size=0: must be"),
        ("rosenbrock", "model.form=odd", "model.form=odd: must be one of evens_odds, pairs"),
        ("rosenbrock", "model.size=3", "model.size=3: must be even"),
        ("rosenbrock", "model.start=[1,2,3]", "must hold 2 numbers, or size=10"),
    ],
)
def test_bad_options_are_refused_with_their_name(choice: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        recipe(choice, override)


def test_listing_recipes_leaves_torch_out() -> None:
    code = (
        "import sys; from gnewton.models import MODELS; from gnewton.partition import PARTITIONS;"
        "assert MODELS.names() and PARTITIONS.names(); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
