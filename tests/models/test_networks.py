"""Shapes, initialisation, the NTK parameterisation, mismatches with the data, and derivatives."""

from __future__ import annotations

import copy
import math
import pickle
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from gnewton.errors import InputError
from gnewton.models.feedforward import fan_in, layers
from gnewton.models.network_options import ACTIVATIONS
from gnewton.models.transformers import SelfAttention
from gnewton.models.widths import expand_widths
from gnewton.summary.smooth import SmoothNorms
from gnewton.tasks import Classification, Reconstruction, Task, TokenClassification

from .cases import CIFAR, DIGITS, MNIST, NETWORKS, NOTHING, PIXELS, SMALL, SMALL_VIT, TEACHER, Case, build

# VGG has the layers of LeNet and far more weights; batch normalisation is affine in evaluation
DIFFERENTIATED = [(case, True) for case in SMALL if case.choice != "vgg11"]
DIFFERENTIATED += [(case, False) for case in SMALL if case.choice == "vit"]


def line(case: Case, training: bool) -> Callable[[Tensor], Tensor]:
    """The loss of ``case`` along a fixed direction, as a function of the step."""
    model = case.build().train(training)
    inputs, targets = case.batch()
    torch.manual_seed(2)
    start = {name: p.detach() for name, p in model.named_parameters()}
    direction = {name: torch.randn_like(p) / math.sqrt(p.numel()) for name, p in start.items()}

    def loss(step: Tensor) -> Tensor:
        moved = {name: p + step * direction[name] for name, p in start.items()}
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        with SmoothNorms():  # torch's own normalisations have no third derivative
            return case.task.loss(functional_call(model, {**moved, **buffers}, (inputs,)), targets)

    return loss


def derivatives(loss: Callable[[Tensor], Tensor], at: float, order: int) -> list[float]:
    """Value and derivatives of ``loss`` by reverse mode over reverse mode."""
    step = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    values = [loss(step)]
    for _ in range(order):
        values.append(*torch.autograd.grad(values[-1], step, create_graph=True))
    return [value.item() for value in values]


@pytest.mark.parametrize("case", NETWORKS, ids=str)
def test_outputs_have_the_shape_of_the_task(case: Case) -> None:
    outputs = case.build()(case.batch(samples=2)[0])
    tokens = case.task.input_shape if isinstance(case.task, TokenClassification) else ()
    assert outputs.shape == (2, *tokens, case.task.outputs)


@pytest.mark.parametrize(
    ("choice", "task", "overrides"),
    [
        ("mlp", MNIST, ()),
        ("lenet", MNIST, ()),
        ("lenet", CIFAR, ()),
        ("vgg11", CIFAR, ("model.batch_norm=true", "model.classifier=[2*16,8]")),
        ("vgg11", Classification((1, 64, 40), 5), ()),
        ("resnet18", CIFAR, ()),
        ("resnet18", MNIST, ("model.small_images=true",)),
        ("resnet50", DIGITS, ()),
        ("vit", CIFAR, ()),
        ("vit", MNIST, ("model.dropout=0.1", "model.attention_dropout=0.1")),
        ("autoencoder", Reconstruction((3, 32, 32), 3072), ()),
    ],
)
def test_default_sizes_run_on_the_data_sets(choice: str, task: Task, overrides: tuple[str, ...]) -> None:
    model = build(choice, task, *overrides)
    assert model(torch.rand(2, *task.input_shape)).shape == (2, task.outputs)


@pytest.mark.parametrize(
    ("choice", "task", "message"),
    [
        ("mlp", NOTHING, "model=mlp: needs inputs of at least one number; data gives no inputs"),
        (
            "lenet",
            DIGITS,
            "model=lenet: needs images (channels, height, width) of at least 16×16 pixels; data gives",
        ),
        ("lenet", TEACHER, "data gives inputs of shape (7,) (task: regression)"),
        ("lenet", NOTHING, "data gives no inputs (task: minimisation)"),
        (
            "vgg11",
            MNIST,
            "model=vgg11: needs images (channels, height, width) of at least 32×32 pixels; data gives",
        ),
        ("resnet18", TEACHER, "model=resnet18: needs images"),
        (
            "vit",
            Classification((3, 32, 28), 10),
            "model=vit: needs square images whose side is a multiple of model.patch_size=4",
        ),
        ("vit", Classification((3, 30, 30), 10), "data gives inputs of shape (3, 30, 30)"),
        ("vit", NOTHING, "model=vit: needs images"),
        ("autoencoder", MNIST, "model=autoencoder: needs data whose target is the input"),
        ("autoencoder", NOTHING, "model=autoencoder: needs data whose target is the input"),
        ("rosenbrock", DIGITS, "model=rosenbrock: needs no data (task: minimisation); data gives inputs"),
    ],
)
def test_mismatch_names_the_model_its_needs_and_the_data(choice: str, task: Task, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        build(choice, task)


@pytest.mark.parametrize("sigma_w", [1.0, math.sqrt(2)])
def test_weights_are_drawn_with_the_wanted_deviation(sigma_w: float) -> None:
    for choice in ("mlp", "vgg11", "resnet18", "vit"):
        for layer in layers(build(choice, CIFAR, f"model.sigma_w={sigma_w}")):
            weight = layer.weight.detach()
            spread = 5 / math.sqrt(weight.numel())
            assert abs(weight.mean().item()) * math.sqrt(fan_in(layer)) < spread * sigma_w
            assert weight.std().item() * math.sqrt(fan_in(layer)) == pytest.approx(sigma_w, rel=spread)
            assert layer.bias is None or not layer.bias.any()


def test_fan_in_counts_the_kernel() -> None:
    assert fan_in(nn.Conv2d(6, 16, 5)) == 150
    assert fan_in(nn.Linear(30, 7)) == 30


def test_torch_keeps_its_own_initialisation_where_sigma_w_is_null() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 4)
    ours = build("mlp", DIGITS, "model.widths=[4]", "model.sigma_w=null")
    assert torch.equal(ours.hidden1.weight, plain.weight)
    assert torch.equal(ours.hidden1.bias, plain.bias)


@pytest.mark.parametrize("training", [True, False])
def test_resnet_is_torchvisions(training: bool) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    theirs = resnet18(num_classes=10).train(training).double()
    ours = build("resnet18", CIFAR).train(training).double()
    images = torch.rand(8, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(ours(images), theirs(images))
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("case", NETWORKS, ids=str)
def test_scaling_changes_the_parameterisation_and_not_the_function(case: Case) -> None:
    plain, scaled = case.build(), case.build("model.scaling=true")
    inputs, _ = case.batch()
    torch.testing.assert_close(scaled(inputs), plain(inputs), rtol=1e-8, atol=1e-10)
    assert [name for name, _ in scaled.named_parameters()] == [name for name, _ in plain.named_parameters()]
    for ours, theirs in zip(layers(scaled), layers(plain), strict=True):
        torch.testing.assert_close(ours.weight, theirs.weight * math.sqrt(fan_in(theirs)))


def test_scaled_weights_have_the_deviation_sigma_w() -> None:
    weight = build("mlp", CIFAR, "model.scaling=true", "model.sigma_w=1.5").hidden1.weight
    assert weight.std().item() == pytest.approx(1.5, rel=0.01)


def test_scaled_networks_can_be_copied_and_pickled_and_hooks_see_the_divided_input() -> None:
    model = build("mlp", DIGITS, "model.scaling=true")
    images = torch.rand(2, 1, 8, 8)
    expected = model(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(images), expected)
    seen = []
    model.hidden1.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
    model(images)
    torch.testing.assert_close(seen[0], images.flatten(1) / 8)


@pytest.mark.parametrize(("case", "training"), DIFFERENTIATED, ids=str)
def test_derivatives_up_to_the_third_agree_with_differences(case: Case, training: bool) -> None:
    loss = line(case, training)
    at, h = 0.1, 1e-6
    here = derivatives(loss, at, order=3)
    before, after = (derivatives(loss, at + side, order=2) for side in (-h, h))
    for order in (1, 2, 3):
        difference = (after[order - 1] - before[order - 1]) / (2 * h)
        assert here[order] == pytest.approx(difference, rel=1e-3, abs=1e-6), f"order {order}"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_three_derivatives(name: str) -> None:
    test_derivatives_up_to_the_third_agree_with_differences(
        Case("mlp", DIGITS, ("model.widths=[6,5]", f"model.activation={name}")), training=True
    )


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_networks_can_be_traced(case: Case) -> None:
    model = case.build()
    inputs, targets = case.batch()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        copies = {name: b.clone() for name, b in buffers.items()}
        return case.task.loss(functional_call(model, {**parameters, **copies}, (inputs,)), targets)

    graph = make_fx(loss)(parameters)
    torch.testing.assert_close(graph(parameters), loss(parameters))


def test_no_activation_works_in_place() -> None:
    for case in NETWORKS:
        assert not any(getattr(module, "inplace", False) for module in case.build().modules())


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    ours = SelfAttention(8, 2, dropout=0.0)
    renamed = {name.replace("in_proj_", "in_proj."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(renamed)
    tokens = torch.randn(3, 5, 8)
    expected, _ = theirs(tokens, tokens, tokens, need_weights=False)
    torch.testing.assert_close(ours(tokens, tokens, tokens)[0], expected)


def test_vision_transformer_is_torchvisions_apart_from_the_attention_module() -> None:
    from torchvision.models import VisionTransformer

    theirs = VisionTransformer(
        image_size=8, patch_size=4, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=12, num_classes=10
    )
    ours = build("vit", Classification((3, 8, 8), 10), *SMALL_VIT)
    nn.init.normal_(theirs.heads.head.weight)
    renamed = {name.replace("in_proj_", "in_proj."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(renamed)
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(ours(images), theirs(images))


def test_autoencoder_mirrors_its_encoder() -> None:
    model = build("autoencoder", PIXELS, "model.widths=[9,7]", "model.code=2")
    assert [(layer.in_features, layer.out_features) for layer in layers(model)] == [
        (64, 9),
        (9, 7),
        (7, 2),
        (2, 7),
        (7, 9),
        (9, 64),
    ]


def test_widths_of_a_recipe_made_in_python_are_checked_too() -> None:
    assert expand_widths([3, "2*4"]) == [3, 4, 4]
    with pytest.raises(InputError, match="'0' is not a width"):
        expand_widths([3, 0])
