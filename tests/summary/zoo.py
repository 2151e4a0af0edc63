"""Small adversarial networks: one entry here reaches every test of the engines."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from gnewton.partition import Partition

from .operations import OPERATIONS, Net, flat, images, tokens


def linear(*widths, activation=nn.Tanh):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), activation()]
    return nn.Sequential(*layers[:-1])


def tied():
    a = nn.Linear(5, 5)
    net = Net(
        lambda m, x: m.out(torch.tanh(m.b(torch.tanh(m.a(x))))), a=a, b=nn.Linear(5, 5), out=nn.Linear(5, 3)
    )
    net.b.weight = a.weight
    return net


def tied_embedding():
    table = nn.Embedding(7, 4, padding_idx=2)
    return Net(lambda m, x: torch.tanh(m.e(x)).mean(1) @ m.e.weight.T, e=table)


def frozen():
    net = linear(5, 4, 4, 3)
    net[2].weight.requires_grad_(False)
    return net


def unused():
    return Net(lambda m, x: m.a(x).tanh(), a=nn.Linear(5, 3), b=nn.Linear(2, 2))


def attention(dropout=0.0):
    mha = nn.MultiheadAttention(6, 2, batch_first=True, dropout=dropout)
    return Net(
        lambda m, x: m.out(m.mha(m.a(x), x, x, need_weights=False)[0].mean(1)),
        mha=mha,
        a=nn.Linear(6, 6),
        out=nn.Linear(6, 3),
    )


def sdpa():
    def forward(m, x):
        q, k, v = m.qkv(x).chunk(3, dim=-1)
        return m.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).mean(1))

    return Net(forward, qkv=nn.Linear(6, 18), out=nn.Linear(6, 3))


def encoder(**options):
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **options)
    return Net(lambda m, x: m.out(m.layer(x).mean(1)), layer=layer, out=nn.Linear(6, 3))


def weight_norm():
    net = linear(5, 4, 3)
    nn.utils.parametrizations.weight_norm(net[0])
    return net


def spectral_norm():
    net = linear(5, 4, 3)
    nn.utils.parametrizations.spectral_norm(net[0])
    return net


def norms(norm, activation=nn.ReLU, bias=False):
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=bias),
        norm(4),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1, bias=bias),
        norm(4),
        activation(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 3),
    )


def running(norm):
    net = norms(norm)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return net.eval()


def activation_net(activation):
    return lambda: linear(5, 6, 5, 3, activation=activation)


def scalar_parameters():
    def forward(m, x):
        return m.scale * torch.tanh(m.shift + m.out(x)) / (1 + m.scale**2)

    return Net(
        forward,
        out=nn.Linear(5, 3),
        scale=nn.Parameter(torch.tensor(1.3)),
        shift=nn.Parameter(torch.tensor(0.2)),
    )


def residual(mixed=False):
    def forward(m, x):
        h = m.a(x)
        h = h + torch.tanh(m.b(h))
        h = h - F.silu(m.c(h)) * torch.sigmoid(m.d(h))
        return m.out(h * h / (1 + h.abs())) if mixed else m.out(h)

    return Net(forward, **{n: nn.Linear(5, 5) for n in "abcd"}, out=nn.Linear(5, 3))


def reuse():
    """One activation read by many operations, in place too, and one parameter used twice."""

    def forward(m, x):
        h = torch.tanh(m.a(x))
        k = F.relu(m.a(h), inplace=True)
        s = h.softmax(-1)
        y = torch.cat([h, k, s, h * k, h[:, :1].expand(-1, 5), torch.stack([h, k], 1).amax(1)], dim=1)
        y = y + y.clone().mul_(0.5).sin_()
        z = torch.where(y > 0, y, 0.1 * y).view(-1, 2, 15).transpose(1, 2).reshape(-1, 30)
        return (
            m.out(z) + h.std(1, keepdim=True) + k.norm() + h.cumsum(1)[:, :3] + h.logsumexp(1, keepdim=True)
        )

    return Net(forward, a=nn.Linear(5, 5), out=nn.Linear(30, 3))


def detached():
    def forward(m, x):
        h = torch.tanh(m.a(x))
        with torch.no_grad():
            scale = h.norm()
        return m.out(h / scale * h.detach() + h.data.sum())

    return Net(forward, a=nn.Linear(5, 5), out=nn.Linear(5, 3))


def convolutions():
    def forward(m, x):
        h = torch.tanh(m.strided(x))
        h = F.elu(m.grouped(h))
        h = F.gelu(m.up(h), approximate="tanh")
        h = F.avg_pool2d(F.interpolate(h, scale_factor=2, mode="bilinear"), 2)
        h = F.pad(h, (1, 0, 0, 1), value=0.3)
        one = torch.tanh(m.line(h.mean(2)))
        three = F.softplus(m.cube(h.unsqueeze(2).expand(-1, -1, 3, -1, -1)))
        return m.out(torch.cat([one.mean(2), three.mean((2, 3, 4))], 1))

    return Net(
        forward,
        strided=nn.Conv2d(2, 4, 3, stride=2, padding=1),
        grouped=nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=2),
        up=nn.ConvTranspose2d(4, 4, 3, stride=2),
        line=nn.Conv1d(4, 2, 3),
        cube=nn.Conv3d(4, 2, 2),
        out=nn.Linear(4, 3),
    )


def hyper():
    """A convolution whose weight comes from another layer: both factors carry many tangents."""

    def forward(m, x):
        w = torch.tanh(m.make(m.code)).view(3, 2, 3, 3)
        h = torch.sigmoid(F.conv2d(m.first(x), w, m.b))
        return h.flatten(2).logsumexp(-1)

    return Net(
        forward,
        make=nn.Linear(4, 54),
        first=nn.Conv2d(2, 2, 1),
        code=nn.Parameter(torch.randn(4)),
        b=nn.Parameter(torch.randn(3)),
    )


def recurrent():
    def forward(m, x):
        h = x[:, 0]
        for t in range(x.shape[1]):
            h = m.cell(x[:, t], h)
        return m.out(h)

    return Net(forward, cell=nn.GRUCell(6, 6), out=nn.Linear(6, 3))


def instance():
    return norms(lambda c: nn.InstanceNorm2d(c, affine=True))


def several_losses(outputs, targets):
    return (
        F.cross_entropy(outputs, targets, label_smoothing=0.1)
        + 0.3 * F.mse_loss(outputs.tanh(), torch.zeros_like(outputs))
        + 0.1 * (outputs**2).sum().sqrt()
    )


def one_hot(loss):
    return lambda outputs, targets: loss(outputs, F.one_hot(targets, outputs.shape[1]).to(outputs.dtype))


def weighted(outputs, targets):
    weight = torch.linspace(0.5, 2.0, outputs.shape[1], dtype=outputs.dtype)
    return F.cross_entropy(outputs, targets, weight=weight, ignore_index=0)


def bce(outputs, targets):
    return F.binary_cross_entropy(outputs.sigmoid(), targets)


ACTIVATIONS = [
    nn.Tanh,
    nn.ReLU,
    nn.Sigmoid,
    nn.ELU,
    nn.GELU,
    nn.SiLU,
    nn.Softplus,
    nn.Identity,
    nn.LeakyReLU,
    nn.SELU,
    nn.CELU,
    nn.Mish,
    nn.Hardswish,
    nn.Hardtanh,
    nn.ReLU6,
    nn.LogSigmoid,
    nn.Softsign,
    nn.Tanhshrink,
    nn.Softshrink,
    nn.PReLU,
    lambda: nn.Softmax(-1),
    lambda: nn.LogSoftmax(-1),
    lambda: nn.GELU(approximate="tanh"),
    lambda: nn.ELU(0.7),
    lambda: nn.Softmin(-1),
]

# name -> (network, data, loss)
CASES = {
    **OPERATIONS,
    "mlp": (lambda: linear(5, 6, 4, 3), flat, F.cross_entropy),
    "tied": (tied, flat, F.cross_entropy),
    "tied_embedding": (
        tied_embedding,
        lambda: (torch.randint(0, 7, (6, 3)), torch.randint(0, 7, (6,))),
        F.cross_entropy,
    ),
    "frozen": (frozen, flat, F.cross_entropy),
    "unused": (unused, flat, F.cross_entropy),
    "attention": (attention, tokens, F.cross_entropy),
    "attention_dropout": (lambda: attention(0.3), tokens, F.cross_entropy),
    "sdpa": (sdpa, tokens, F.cross_entropy),
    "encoder": (lambda: encoder(dropout=0.2), tokens, F.cross_entropy),
    "encoder_prenorm_gelu_eval": (
        lambda: encoder(norm_first=True, activation="gelu").eval(),
        tokens,
        F.cross_entropy,
    ),
    "weight_norm": (weight_norm, flat, F.cross_entropy),
    "spectral_norm_eval": (lambda: spectral_norm().eval(), flat, F.cross_entropy),
    "batch_norm": (lambda: norms(nn.BatchNorm2d), images, F.cross_entropy),
    "batch_norm_tanh": (lambda: norms(nn.BatchNorm2d, nn.Tanh, bias=True), images, F.cross_entropy),
    "batch_norm_plain": (
        lambda: norms(lambda c: nn.BatchNorm2d(c, affine=False, track_running_stats=False)),
        images,
        F.cross_entropy,
    ),
    "batch_norm_eval": (lambda: running(nn.BatchNorm2d), images, F.cross_entropy),
    "group_norm": (lambda: norms(lambda c: nn.GroupNorm(2, c)), images, F.cross_entropy),
    "instance_norm": (instance, images, F.cross_entropy),
    "layer_norm": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ELU(), nn.Linear(6, 3)),
        flat,
        F.cross_entropy,
    ),
    "layer_norm_inputs": (lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 3)), flat, F.cross_entropy),
    "scalar_parameters": (scalar_parameters, flat, F.cross_entropy),
    "residual": (residual, flat, F.cross_entropy),
    "residual_gates": (lambda: residual(True), flat, F.cross_entropy),
    "reuse": (reuse, flat, F.cross_entropy),
    "detached": (detached, flat, F.cross_entropy),
    "convolutions": (convolutions, images, F.cross_entropy),
    "hyper": (hyper, images, F.cross_entropy),
    "recurrent": (recurrent, tokens, F.cross_entropy),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.4), nn.Tanh(), nn.Linear(6, 3)),
        flat,
        F.cross_entropy,
    ),
    "dropout2d": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3), nn.Dropout2d(0.4), nn.Tanh(), nn.Flatten(), nn.Linear(108, 3)
        ),
        images,
        F.cross_entropy,
    ),
    "alpha_dropout": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.AlphaDropout(0.4), nn.SELU(), nn.Linear(6, 3)),
        flat,
        F.cross_entropy,
    ),
    "several_losses": (lambda: linear(5, 4, 3), flat, several_losses),
    "weighted": (lambda: linear(5, 4, 3), flat, weighted),
    "pixels": (
        lambda: nn.Conv2d(2, 3, 3, padding=1),
        lambda: (torch.randn(2, 2, 4, 4), torch.randint(0, 3, (2, 4, 4))),
        F.cross_entropy,
    ),
    "mse": (lambda: linear(5, 4, 3), flat, one_hot(F.mse_loss)),
    "bce_logits": (lambda: linear(5, 4, 3), flat, one_hot(F.binary_cross_entropy_with_logits)),
    "bce": (lambda: linear(5, 4, 3), flat, one_hot(bce)),
    "smooth_l1": (lambda: linear(5, 4, 3), flat, one_hot(F.smooth_l1_loss)),
    "huber": (lambda: linear(5, 4, 3), flat, one_hot(F.huber_loss)),
    "l1": (lambda: linear(5, 4, 3), flat, one_hot(F.l1_loss)),
    "kl": (
        lambda: linear(5, 4, 3),
        flat,
        one_hot(lambda o, t: F.kl_div(o.log_softmax(1), t, reduction="batchmean")),
    ),
    "sum": (lambda: linear(5, 4, 3), flat, lambda o, t: F.cross_entropy(o, t, reduction="sum")),
    "unreduced": (
        lambda: linear(5, 4, 3),
        flat,
        lambda o, t: (F.cross_entropy(o, t, reduction="none") ** 2).mean(),
    ),
    **{
        f"act_{k}_{getattr(a, '__name__', 'x')}": (activation_net(a), flat, F.cross_entropy)
        for k, a in enumerate(ACTIVATIONS)
    },
}


ALIKE = (
    *("attention_dropout", "encoder_prenorm_gelu_eval", "masked_attention_dropout", "residual_gates"),
    *("batch_norm_tanh", "batch_norm_plain", "norms_1d_eval", "layer_norm_inputs"),
    *("mse", "bce_logits", "bce", "smooth_l1", "l1", "kl", "sum", "unreduced", "weighted", "rnn"),
    *(name for name in CASES if name.startswith("act_") and not name.endswith(("_ReLU", "_GELU", "_PReLU"))),
)
DISTINCT = [name for name in CASES if name not in ALIKE]
"""One case for each way through the rules, where their formulas are not what is tested: the others go the way
of these (the activations that of ``functions``, the losses that of ``entrywise`` and ``cross_entropies``)."""


def make(name, dtype=torch.float64, seed=0):
    """(model, loss, inputs, targets, direction) of a case."""
    build, data, loss_fn = CASES[name]
    torch.manual_seed(seed)
    model = build().to(dtype)
    inputs, targets = data()
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    return model, loss_fn, inputs, targets, direction


def partitions(model):
    """Every kind of partition: fine, coarse, and groups that span far layers in any order."""
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    groupings = {"per_tensor": [[n] for n in names], "single": [names]}
    if len(names) > 2:
        groupings["alternate"] = [names[::3], names[1::3], names[2::3]]
        groupings["backwards"] = [[n] for n in reversed(names)]
        groupings["ends"] = [[names[0], names[-1]], names[1:-1]]
    return {kind: Partition.from_names(model, groups) for kind, groups in groupings.items()}
