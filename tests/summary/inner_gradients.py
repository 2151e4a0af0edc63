"""Small models and losses that form gradients inside: one entry here reaches every test of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap

from .operations import Net, flat, images, tokens
from .zoo import linear


def slope(y, x, **options):
    """∂(Σ y)/∂x, with its graph."""
    return torch.autograd.grad(y.sum(), x, **{"create_graph": True, **options})[0]


def points():
    return torch.rand(7, 2), torch.zeros(7, 1)


# --- physics-informed networks ------------------------------------------------------------------------------


def burgers(activation=nn.Tanh):
    """u_t + u u_x − ν u_xx in the forward pass."""

    def forward(m, x):
        x = x.requires_grad_()
        u = m.net(x)
        first = slope(u, x)
        return first[:, :1] + u * first[:, 1:] - 0.05 * slope(first[:, 1], x)[:, 1:]

    return Net(forward, net=linear(2, 6, 5, 1, activation=activation))


def by_grad_outputs():
    """The same with a vector of ones, a copy of the points, and columns that are put together."""

    def forward(m, x):
        t, s = (column.clone().detach().requires_grad_(True) for column in x.split(1, 1))
        u = m.net(torch.cat([t, s], 1))
        ones = torch.ones_like(u)
        u_t, u_s = torch.autograd.grad(u, [t, s], ones, create_graph=True)
        (u_ss,) = torch.autograd.grad(u_s, s, grad_outputs=ones, retain_graph=True, create_graph=True)
        return u_t + u * u_s - 0.05 * u_ss

    return Net(forward, net=linear(2, 6, 5, 1))


def by_attribute():
    def forward(m, x):
        x = x.clone()
        x.requires_grad = True
        return slope(m.net(x).sin(), x).sum(1, keepdim=True)

    return Net(forward, net=linear(2, 6, 1))


def by_func():
    """Derivatives of one point by ``torch.func``, batched."""

    def forward(m, x):
        def u(point):
            return m.net(point).squeeze(-1)

        first, second = vmap(grad(u))(x), vmap(hessian(u))(x)
        third = vmap(jacrev(lambda p: grad(u)(p)[0]))(x)
        return first[:, :1] + m.net(x) * second.diagonal(dim1=1, dim2=2).sum(1, keepdim=True) + third[:, 1:]

    return Net(forward, net=linear(2, 5, 4, 1))


def by_jvp():
    def forward(m, x):
        along = torch.ones_like(x)
        return jvp(lambda z: jvp(m.net, (z,), (along,))[1], (x,), (along,))[1]

    return Net(forward, net=linear(2, 5, 4, 1))


def both_ways():
    """``torch.func`` inside a model that also calls ``torch.autograd.grad``."""

    def forward(m, x):
        x = x.clone().requires_grad_()
        u = m.net(x)
        pushed = jvp(m.net, (x,), (torch.ones_like(x),))[1]
        return slope(u, x)[:, :1] * pushed + u

    return Net(forward, net=linear(2, 5, 4, 1))


# --- penalties on the gradient of a critic ------------------------------------------------------------------


def penalised(critic, samples):
    """Scores of generated and real samples, and the penalty on the critic's slope between them."""

    def forward(m, x):
        share = torch.rand(len(x), *[1] * (x.dim() - 1), dtype=x.dtype)
        between = (share * x + (1 - share) * m.fake).detach().requires_grad_()
        length = slope(m.critic(between), between).flatten(1).norm(2, dim=1)
        return torch.stack([m.critic(m.fake).mean(), m.critic(x).mean(), (length - 1).square().mean()])

    return lambda: Net(forward, critic=critic(), fake=0.5 * torch.randn_like(samples()[0]))


def critic_loss(scores, _):
    return scores[0] - scores[1] + 10 * scores[2]


def dense(activation):
    return lambda: linear(5, 6, 4, 1, activation=activation)


def convolutions(*middle, width=16):
    """Strides that leave pixels over, dilation, and layers in between."""
    return lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1),
        nn.SiLU(),
        *[layer() for layer in middle],
        nn.Conv2d(4, 4, 2, dilation=2, groups=2),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(width, 1),
    )


def attention():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True, activation="gelu")
    return nn.Sequential(layer, nn.Flatten(), nn.Linear(24, 1))


# --- inner steps --------------------------------------------------------------------------------------------


def inner_steps(make, *, steps=1, first_order=False):
    """The loss of the query half of a batch after gradient steps on the support half (MAML)."""

    def forward(m, x):
        support, query = x.chunk(2)
        fast = dict(m.net.named_parameters())
        for _ in range(steps):
            loss = F.mse_loss(functional_call(m.net, fast, (support,)), m.known)
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=not first_order)
            fast = {name: p - 0.3 * g for (name, p), g in zip(fast.items(), grads, strict=True)}
        return functional_call(m.net, fast, (query,))

    return lambda: Net(forward, net=make(), known=torch.randn(3, 3))


def by_func_grad(m, x):
    support, query = x.chunk(2)
    fast = dict(m.net.named_parameters())
    grads = grad(lambda p: F.mse_loss(functional_call(m.net, p, (support,)), m.known))(fast)
    return functional_call(m.net, {name: p - 0.3 * grads[name] for name, p in fast.items()}, (query,))


def small_convolution():
    return nn.Sequential(nn.Conv2d(2, 2, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3))


def pairs():
    return torch.randn(6, 5), torch.randint(0, 3, (3,))


def pairs_of_images():
    return torch.randn(6, 2, 8, 8), torch.randint(0, 3, (3,))


# --- others -------------------------------------------------------------------------------------------------


def asked():
    """A choice by the values of slopes."""

    def forward(m, x):
        x = x.clone().requires_grad_()
        u = m.net(x)
        g = slope(u, x)
        if g.abs().max() > 1e-3 and float(g.detach().mean()) < 1e3:
            u = u * g[:, :1]
        return u + g[:, 1:]

    return Net(forward, net=linear(2, 5, 1))


def residual_in_the_loss():
    """The network returns its points beside its values; the loss differentiates."""

    def forward(m, x):
        x = x.clone().requires_grad_()
        return m.net(x), x

    return Net(forward, net=linear(2, 6, 1))


def residual(outputs, _):
    u, x = outputs
    g = slope(u, x)
    return (g.sum(1) - u[:, 0]).square().mean() + slope(g[:, 0], x).square().mean()


def by_functional():
    def forward(m, x):
        return torch.autograd.functional.jvp(m.net, (x,), (torch.ones_like(x),), create_graph=True)[1]

    return Net(forward, net=linear(2, 5, 1))


def forces():
    """Energies of configurations, and forces as their slopes."""

    def forward(m, x):
        positions = x.reshape(len(x), 2, 3).requires_grad_()
        distance = (positions[:, 0] - positions[:, 1]).square().sum(1, keepdim=True).sqrt()
        energy = m.net(distance)
        return torch.cat([energy, -slope(energy, positions).flatten(1)], 1)

    return Net(forward, net=linear(1, 6, 5, 1, activation=nn.SiLU))


def perturbed_embedding():
    """A step against the embedded tokens, whose direction is a constant (adversarial training)."""

    def forward(m, x):
        embedded = m.table(x)
        known = torch.autograd.grad(m.head(embedded.flatten(1)).logsumexp(1).sum(), embedded)[0]
        return m.head((embedded + 0.1 * known / known.norm()).flatten(1))

    return Net(forward, table=nn.Embedding(7, 3), head=linear(12, 6, 3))


def words():
    return torch.randint(0, 7, (5, 4)), torch.randint(0, 3, (5,))


def energies():
    return torch.randn(5, 6), torch.randn(5, 7)


def with_own(*names):
    return {name: (lambda name=name: burgers(getattr(nn, name)), points, F.mse_loss) for name in names}


CASES = {
    "burgers": (burgers, points, F.mse_loss),
    "by_grad_outputs": (by_grad_outputs, points, F.mse_loss),
    "by_attribute": (by_attribute, points, F.mse_loss),
    "by_func": (by_func, points, F.mse_loss),
    "by_jvp": (by_jvp, points, F.mse_loss),
    "both_ways": (both_ways, points, F.mse_loss),
    **with_own("Sigmoid", "SiLU", "GELU", "Softplus", "ELU", "Mish", "Tanhshrink", "LogSigmoid"),
    "critic": (penalised(dense(lambda: nn.LeakyReLU(0.2)), flat), flat, critic_loss),
    "critic_in_place": (penalised(dense(lambda: nn.LeakyReLU(0.2, inplace=True)), flat), flat, critic_loss),
    "critic_relu": (penalised(dense(nn.ReLU), flat), flat, critic_loss),
    "convolutions": (penalised(convolutions(), images), images, critic_loss),
    "group_norm": (penalised(convolutions(lambda: nn.GroupNorm(2, 4)), images), images, critic_loss),
    "instance_norm": (penalised(convolutions(lambda: nn.InstanceNorm2d(4)), images), images, critic_loss),
    "batch_norm": (penalised(convolutions(lambda: nn.BatchNorm2d(4)), images), images, critic_loss),
    "layer_norm": (penalised(convolutions(lambda: nn.LayerNorm([4, 4, 4])), images), images, critic_loss),
    "max_pool": (penalised(convolutions(lambda: nn.MaxPool2d(2, 1), width=4), images), images, critic_loss),
    "avg_pool": (penalised(convolutions(lambda: nn.AvgPool2d(2, 1), width=4), images), images, critic_loss),
    "attention": (penalised(attention, tokens), tokens, critic_loss),
    "inner_step": (inner_steps(lambda: linear(5, 4, 3)), pairs, F.cross_entropy),
    "inner_steps": (inner_steps(lambda: linear(5, 4, 3), steps=2), pairs, F.cross_entropy),
    "first_order": (inner_steps(lambda: linear(5, 4, 3), first_order=True), pairs, F.cross_entropy),
    "inner_step_by_func": (
        lambda: Net(by_func_grad, net=linear(5, 4, 3), known=torch.randn(3, 3)), pairs, F.cross_entropy,),
    "inner_step_of_convolution": (inner_steps(small_convolution), pairs_of_images, F.cross_entropy),
    "asked": (asked, points, F.mse_loss),
    "residual_in_the_loss": (residual_in_the_loss, points, residual),
    "by_functional": (by_functional, points, F.mse_loss),
    "forces": (forces, energies, F.mse_loss),
    "perturbed_embedding": (perturbed_embedding, words, F.cross_entropy),
}  # fmt: skip


def make(name, dtype=torch.float64, seed=0):
    """(model, loss, inputs, targets, direction) of a case."""
    build, data, loss_fn = CASES[name]
    torch.manual_seed(seed)
    model = build().to(dtype)
    inputs, targets = (x.to(dtype) if x.is_floating_point() else x for x in data())
    direction = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    return model, loss_fn, inputs, targets, direction
