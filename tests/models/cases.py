"""One small case of every network, and a way to compose a model's YAML with overrides."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from gnewton.models import MODELS, ModelRecipe
from gnewton.tasks import Classification, Minimisation, Reconstruction, Regression, Task, TokenClassification
from tests.recipes import CONFIGS
from tests.recipes import recipe as made

YAMLS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def recipe(choice: str, *overrides: str) -> ModelRecipe:
    """What ``gnewton train model=choice`` and ``overrides`` make of the YAML, checked."""
    built = made(MODELS, "mlp", choice, *overrides)
    assert isinstance(built, ModelRecipe)
    return built


def build(choice: str, task: Task, *overrides: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return recipe(choice, *overrides).build(task)


MNIST = Classification((1, 28, 28), 10)
CIFAR = Classification((3, 32, 32), 10)
DIGITS = Classification((1, 8, 8), 10)
IMAGENET = Classification((3, 224, 224), 1000)
TEACHER = Regression((7,), 3)
PIXELS = Reconstruction((1, 8, 8), 64)
NOTHING = Minimisation((), 1)
POINTS = Regression((2,), 1)
TOKENS = TokenClassification((6,), 5, symbols=7)


@dataclass(frozen=True)
class Case:
    """A network small enough for third derivatives on one core, smooth where it can be."""

    choice: str
    task: Task
    overrides: tuple[str, ...] = ()

    def build(self, *overrides: str) -> nn.Module:
        """The network in float64."""
        torch.set_default_dtype(torch.float64)
        try:
            return build(self.choice, self.task, *self.overrides, *overrides)
        finally:
            torch.set_default_dtype(torch.float32)

    def batch(self, samples: int = 2) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the kind the task has, in float64."""
        dtype = torch.float64
        draw = torch.Generator().manual_seed(1)
        if isinstance(self.task, Minimisation):
            return torch.zeros((), dtype=dtype), torch.zeros((), dtype=dtype)
        if isinstance(self.task, TokenClassification):
            shape = (samples, *self.task.input_shape)
            inputs = torch.randint(self.task.symbols, shape, generator=draw)
            return inputs, torch.randint(self.task.outputs, shape, generator=draw)
        inputs = torch.rand(samples, *self.task.input_shape, generator=draw, dtype=dtype)
        if isinstance(self.task, Classification):
            return inputs, torch.randint(self.task.outputs, (samples,), generator=draw)
        if isinstance(self.task, Reconstruction):
            return inputs, inputs.flatten(1)
        return inputs, torch.rand(samples, self.task.outputs, generator=draw, dtype=dtype)

    def __str__(self) -> str:
        return "-".join((self.choice, type(self.task).__name__.lower(), *self.overrides))


SMALL_VIT = (
    "model.depth=2",
    "model.width=8",
    "model.heads=2",
    "model.mlp_width=12",
    "model.sigma_w=1.0",
)
SMALL_TRANSFORMER = ("model.depth=1", "model.width=8", "model.heads=2", "model.expansion=2")
SMALL = [
    Case("mlp", DIGITS, ("model.widths=[6,5]",)),
    Case("mlp", TEACHER, ("model.widths=[2*6]", "model.activation=softplus")),
    Case("mlp", PIXELS, ("model.widths=[6]", "model.activation=gelu")),
    Case("lenet", replace(CIFAR, input_shape=(2, 16, 17)), ("model.pooling=average",)),
    Case("lenet", replace(CIFAR, input_shape=(2, 16, 17)), ("model.activation=silu",)),
    Case("vgg11", replace(CIFAR, input_shape=(1, 32, 32)), ("model.activation=silu",)),
    Case(
        "resnet18", replace(DIGITS, input_shape=(1, 16, 16)), ("model.small_images=true", "model.sigma_w=1.0")
    ),
    Case("vit", DIGITS, SMALL_VIT),
    Case("transformer", TOKENS, SMALL_TRANSFORMER),
    Case("pinn", POINTS, ("model.widths=[6,5]",)),
    Case("pinn", POINTS, ("model.widths=[4]", "model.activation=sin")),
    Case("autoencoder", PIXELS, ("model.widths=[6,5]", "model.code=3")),
    Case("rosenbrock", NOTHING, ("model.form=evens_odds",)),
    Case("rosenbrock", NOTHING, ("model.form=pairs",)),
]
NETWORKS = [case for case in SMALL if case.choice != "rosenbrock"]
