"""The options of every network, checked before torch is loaded, and the name of its builder."""

from __future__ import annotations

from abc import ABC
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from gnewton.models.widths import width_complaints
from gnewton.options import option, option_of
from gnewton.registry import Registry, imported

if TYPE_CHECKING:
    from torch import nn

    from gnewton.tasks import Task

ACTIVATIONS = {
    "identity": "Identity",
    "tanh": "Tanh",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "elu": "ELU",
    "gelu": "GELU",
    "silu": "SiLU",
    "softplus": "Softplus",
}
"""The class in ``torch.nn`` of each activation."""

VGG_LAYOUTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "A": ((64,), (128,), (256,) * 2, (512,) * 2, (512,) * 2),
    "B": ((64,) * 2, (128,) * 2, (256,) * 2, (512,) * 2, (512,) * 2),
    "D": ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3),
    "E": ((64,) * 2, (128,) * 2, (256,) * 4, (512,) * 4, (512,) * 4),
}
"""Channels of the 3×3 convolutions in each of the five stages; every stage ends with a 2×2 max pooling."""

RESNET_DEPTHS = (18, 34, 50, 101, 152)


@dataclass(kw_only=True)
class ModelRecipe(ABC):
    """Options of one network. ``name`` is the choice ``model=name``.

    Attributes:
        builder: the function of (options, task) that builds the network, as ``module:name``.
    """

    builder: ClassVar[str]

    name: str

    def build(self, task: Task) -> nn.Module:
        """Build the network for a task, initialised from torch's global random stream.

        Raises:
            InputError: if the network does not fit the task's input shape or kind.
        """
        network: nn.Module = imported(self.builder)(self, task)
        return network


MODELS = Registry("model", "gnewton.models.network_options", ModelRecipe)  # type: ignore[type-abstract]


@dataclass(kw_only=True)
class NetworkRecipe(ModelRecipe):
    """A network of linear and convolutional layers.

    Attributes:
        sigma_w: weights are drawn from N(0, sigma_w²/fan_in) and biases set to 0; None keeps the
            initialisation of torch or torchvision.
        scaling: the NTK parameterisation: weights sqrt(fan_in) times larger, and the input of each layer
            divided by sqrt(fan_in). The same random draws give the same function.
    """

    sigma_w: float | None = option(
        1.0,
        help="weights are drawn from N(0, sigma_w²/fan_in), biases are 0; null: that of PyTorch",
        above=0,
    )
    scaling: bool = option(
        False,
        help="true: weights √fan_in times larger, the input of each layer divided by √fan_in (NTK "
        "parameterisation)",
    )

    def build(self, task: Task) -> nn.Module:
        """See :meth:`ModelRecipe.build`."""
        network = super().build(task)
        imported("gnewton.models.feedforward:initialise")(network, self.sigma_w, self.scaling)
        return network


@MODELS.register("mlp")
@dataclass(kw_only=True)
class Mlp(NetworkRecipe):
    """Multi-layer perceptron on flattened inputs: (N, *input_shape) -> (N, outputs).

    Attributes:
        widths: units of the hidden layers, with the shorthand of :mod:`gnewton.models.widths`; may be empty.
        activation: after each hidden layer.
    """

    builder = "gnewton.models.feedforward:mlp"

    widths: list[str] = option(
        ["1024", "200", "100"],
        help="units of each hidden layer; '20*1024' stands for twenty layers of 1024; [] for none",
    )
    activation: str = option(
        "tanh",
        help="after each hidden layer",
        choices=ACTIVATIONS,
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Entries of ``widths`` that are no widths."""
        for complaint in width_complaints(self.widths):
            yield "widths", complaint


@MODELS.register("autoencoder")
@dataclass(kw_only=True)
class AutoEncoder(NetworkRecipe):
    """Encoder, linear code and mirrored decoder: (N, *input_shape) -> logits (N, pixels).

    The defaults are the network of Hinton & Salakhutdinov, "Reducing the dimensionality of data with neural
    networks" (2006), for MNIST.

    Attributes:
        widths: units of the encoder's hidden layers, with the shorthand of :mod:`gnewton.models.widths`; the
            decoder has them in reverse.
        code: units of the code, which has no activation.
        activation: after each hidden layer.
    """

    builder = "gnewton.models.feedforward:autoencoder"

    widths: list[str] = option(
        ["1000", "500", "250"],
        help="units of the encoder's hidden layers, reversed in the decoder; '3*500' stands for three of 500",
    )
    code: int = option(30, help="units of the code, which has no activation", at_least=1)
    activation: str = option_of(Mlp, "activation")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Entries of ``widths`` that are no widths."""
        for complaint in width_complaints(self.widths):
            yield "widths", complaint


@MODELS.register("lenet")
@dataclass(kw_only=True)
class LeNet(NetworkRecipe):
    """LeNet-5, two 5×5 convolutions and three linear layers: (N, C, H, W) -> (N, outputs), H, W >= 16.

    LeCun, Bottou, Bengio & Haffner, "Gradient-based learning applied to document recognition" (1998).

    Attributes:
        activation: after each layer but the last.
        pooling: of each convolution's 2×2 windows, ``max`` or ``average``.
    """

    builder = "gnewton.models.feedforward:lenet"

    activation: str = option_of(Mlp, "activation", help="after each layer but the last")
    pooling: str = option(
        "max", help="of each convolution's 2×2 windows: max or average", choices=("max", "average")
    )


@MODELS.register("vgg")
@dataclass(kw_only=True)
class Vgg(NetworkRecipe):
    """Stages of 3×3 convolutions, each halving the image, and a classifier: (N, C, H, W) -> (N, outputs).

    Simonyan & Zisserman, "Very deep convolutional networks for large-scale image recognition" (2015); the
    names of the networks count its three linear layers.
    An image of 32×32 pixels ends as 512 features, one of H×W as 512·⌊H/32⌋·⌊W/32⌋.

    Attributes:
        layout: A, B, D or E, the networks of 11, 13, 16 and 19 layers.
        batch_norm: normalise the output of each convolution over the batch.
        classifier: units of the hidden layers of the classifier, with the shorthand of
            :mod:`gnewton.models.widths`; empty for a single linear layer.
        activation: after each layer but the last.
    """

    builder = "gnewton.models.feedforward:vgg"

    layout: str = option(
        "A",
        help="A, B, D or E: 8, 10, 13 or 16 convolutions, in five stages that each halve the image",
        choices=VGG_LAYOUTS,
    )
    batch_norm: bool = option(False, help="normalise the output of each convolution over the batch")
    classifier: list[str] = option(
        [], help="units of the classifier's hidden layers, such as ['2*4096']; [] for a single linear layer"
    )
    activation: str = option_of(LeNet, "activation", "elu")

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Entries of ``classifier`` that are no widths."""
        for complaint in width_complaints(self.classifier):
            yield "classifier", complaint


@MODELS.register("resnet")
@dataclass(kw_only=True)
class ResNet(NetworkRecipe):
    """torchvision's ResNet: (N, C, H, W) -> (N, outputs), images of any size.

    He, Zhang, Ren & Sun, "Deep residual learning for image recognition" (2016).

    Attributes:
        depth: layers: 18, 34, 50, 101 or 152.
        small_images: begin with a 3×3 convolution of stride 1 and no pooling, as for CIFAR-10, instead of the
            7×7 convolution of stride 2 and a pooling.
    """

    builder = "gnewton.models.feedforward:resnet"

    depth: int = option(18, help="layers: 18, 34, 50, 101 or 152", at_least=1)
    small_images: bool = option(
        False,
        help="true for images such as those of CIFAR-10: begin with 3×3, stride 1, no pooling; "
        "false: 7×7, stride 2, pooling",
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A depth that torchvision does not have."""
        if self.depth not in RESNET_DEPTHS:
            yield "depth", f"must be one of {', '.join(map(str, RESNET_DEPTHS))}"


@MODELS.register("vit")
@dataclass(kw_only=True)
class Vit(NetworkRecipe):
    """torchvision's VisionTransformer: square images (N, C, H, H) -> (N, outputs).

    Dosovitskiy et al., "An image is worth 16×16 words" (2021).

    Attributes:
        patch_size: pixels on a side of a patch; it must divide H.
        depth: number of transformer blocks.
        heads: attention heads, which share ``width`` evenly.
        width: features of a token.
        mlp_width: hidden units of the perceptron in each block.
        dropout: probability of zeroing a feature of a token, in training.
        attention_dropout: probability of zeroing an attention weight, in training.
    """

    builder = "gnewton.models.transformers:vision_transformer"

    patch_size: int = option(
        4, help="pixels on a side of a patch; divides the side of the images", at_least=1
    )
    depth: int = option(6, help="number of transformer blocks", at_least=1)
    heads: int = option(4, help="attention heads; divides width", at_least=1)
    width: int = option(128, help="features of a token", at_least=1)
    mlp_width: int = option(384, help="hidden units of the perceptron in each block", at_least=1)
    dropout: float = option(
        0.0, help="probability of zeroing a feature of a token, in training", at_least=0, below=1
    )
    attention_dropout: float = option(
        0.0, help="probability of zeroing an attention weight, in training", at_least=0, below=1
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A width that the heads cannot share evenly."""
        if self.heads >= 1 and self.width % self.heads:
            yield "width", f"must be a multiple of heads={self.heads}"


@MODELS.register("transformer")
@dataclass(kw_only=True)
class Transformer(NetworkRecipe):
    """Causal transformer: tokens (N, T) int64 -> logits (N, T, outputs), each from the tokens up to its own.

    Vaswani et al., "Attention is all you need" (2017), with the normalisation before each part of a block
    (Xiong et al. 2020) and GELU, as in GPT-2 (Radford et al. 2019).

    Attributes:
        width: features of a token.
        depth: number of blocks.
        heads: attention heads, which share ``width`` evenly.
        expansion: hidden units of the perceptron in each block, as a multiple of ``width``.
    """

    builder = "gnewton.models.transformers:transformer"

    width: int = option(64, help="features of a token", at_least=1)
    depth: int = option(2, help="number of blocks", at_least=1)
    heads: int = option(4, help="attention heads; divides width", at_least=1)
    expansion: int = option(4, help="hidden units of each perceptron, as a multiple of width", at_least=1)

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """A width that the heads cannot share evenly."""
        if self.heads >= 1 and self.width % self.heads:
            yield "width", f"must be a multiple of heads={self.heads}"


@MODELS.register("pinn")
@dataclass(kw_only=True)
class Pinn(NetworkRecipe):
    """Physics-informed network for Poisson's equation on the unit cube: points (N, d) -> −Δu (N, 1).

    u(x) = N(x) Π_i x_i (1 − x_i) with a perceptron N: zero on the boundary, whatever the parameters. Raissi,
    Perdikaris & Karniadakis, "Physics-informed neural networks" (2019).

    Attributes:
        widths: units of the hidden layers, with the shorthand of :mod:`gnewton.models.widths`.
        activation: after each hidden layer, with two derivatives in closed form.
    """

    builder = "gnewton.models.analytic:pinn"

    widths: list[str] = option_of(Mlp, "widths", ["32", "32"])
    activation: str = option("tanh", help="after each hidden layer", choices=("tanh", "sin"))

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """Entries of ``widths`` that are no widths."""
        for complaint in width_complaints(self.widths):
            yield "widths", complaint


@MODELS.register("rosenbrock")
@dataclass(kw_only=True)
class Rosenbrock(ModelRecipe):
    """f(x) = Σ_i (x_{2i−1} − a)² + b (x_{2i−1}² − x_{2i})², minimised without data.

    The minimum is 0, at x_odd = a and x_even = a².

    Attributes:
        form: layout in parameters: ``evens_odds`` (two of size/2 entries) or ``pairs`` (size/2 of two).
        size: number of coordinates, even.
        a: the odd coordinates of the minimum.
        b: weight of the valley's walls.
        start: the point to start from: (odd, even) for every pair, or all ``size`` coordinates x_1, x_2 ….
    """

    builder = "gnewton.models.analytic:rosenbrock"

    form: str = option(
        "evens_odds",
        help="parameter tensors: evens_odds (all odd coordinates, all even ones) or pairs (one "
        "tensor per pair)",
        choices=("evens_odds", "pairs"),
    )
    size: int = option(10, help="number of coordinates, even", at_least=2)
    a: float = option(1.0, help="the minimum is 0, at x_odd = a, x_even = a²")
    b: float = option(100.0, help="weight of the valley's walls", at_least=0)
    start: list[float] = option(
        [-1.2, 1.0], help="where to start: x_odd, x_even for every pair, or all coordinates in order"
    )

    def conflicts(self) -> Iterator[tuple[str, str]]:
        """An odd size, and a start of neither length."""
        if self.size % 2:
            yield "size", "must be even, coordinates come in pairs"
        if len(self.start) not in (2, self.size):
            yield "start", f"must hold 2 numbers, or size={self.size}"
