"""Independent answers in float64: nothing here uses the engines under test."""

from __future__ import annotations

import itertools

import torch
from torch.func import functional_call


def phi(model, loss_fn, inputs, targets, partition, direction, epsilon):
    """φ(ε) = L(θ + Σ_s ε_s P_s u), straight from its definition."""
    index = partition.index
    moved = {}
    for name, p in model.named_parameters():
        moved[name] = p.detach() + epsilon[index[name]] * direction[name] if name in index else p.detach()
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    return loss_fn(functional_call(model, {**moved, **buffers}, (inputs,)), targets)


def finite_differences(model, loss_fn, inputs, targets, partition, direction, step=1e-3):
    """(gradient, hessian, third) of φ by central differences of order 4, 4 and 2."""
    size = len(partition)

    def f(*moves):
        epsilon = torch.zeros(size, dtype=torch.float64)
        for s, amount in moves:
            epsilon[s] += amount
        with torch.no_grad():
            return phi(model, loss_fn, inputs, targets, partition, direction, epsilon).item()

    h, zero = step, f()
    stencil = {-2: 1 / 12, -1: -8 / 12, 1: 8 / 12, 2: -1 / 12}
    second = {-2: -1 / 12, -1: 16 / 12, 0: -30 / 12, 1: 16 / 12, 2: -1 / 12}
    cubic = {-3: 1 / 8, -2: -1.0, -1: 13 / 8, 1: -13 / 8, 2: 1.0, 3: -1 / 8}
    gradient = torch.zeros(size, dtype=torch.float64)
    third = torch.zeros(size, dtype=torch.float64)
    hessian = torch.zeros(size, size, dtype=torch.float64)
    for s in range(size):
        along = {k: (f((s, k * h)) if k else zero) for k in range(-3, 4)}
        gradient[s] = sum(w * along[k] for k, w in stencil.items()) / h
        hessian[s, s] = sum(w * along[k] for k, w in second.items()) / h**2
        wide = {k: f((s, 8 * k * h)) for k in cubic}
        third[s] = sum(w * wide[k] for k, w in cubic.items()) / (8 * h) ** 3
    for s, t in itertools.combinations(range(size), 2):
        mixed = sum(stencil[i] * stencil[j] * f((s, i * h), (t, j * h)) for i in stencil for j in stencil)
        hessian[s, t] = hessian[t, s] = mixed / h**2
    return gradient, hessian, third


def dense(model, loss_fn, inputs, targets, partition, direction):
    """(gradient, hessian) from the full gradient and the full Hessian of a tiny model."""
    names = list(partition.index)
    theta = dict(model.named_parameters())
    sizes = [theta[name].numel() for name in names]
    flat = torch.cat([theta[name].detach().reshape(-1) for name in names])

    def loss(vector):
        pieces = {
            name: piece.view_as(theta[name]) for name, piece in zip(names, vector.split(sizes), strict=True)
        }
        return loss_fn(functional_call(model, pieces, (inputs,)), targets)

    full_gradient = torch.autograd.functional.jacobian(loss, flat)
    full_hessian = torch.autograd.functional.hessian(loss, flat)
    blocks = torch.zeros(len(partition), flat.numel(), dtype=flat.dtype)
    offset = 0
    for name, count in zip(names, sizes, strict=True):
        blocks[partition.index[name], offset : offset + count] = direction[name].reshape(-1)
        offset += count
    return blocks @ full_gradient, blocks @ full_hessian @ blocks.T


# central differences on nine points, of order 8, 8 and 6, for the first three derivatives
STENCILS = (
    (1 / 280, -4 / 105, 1 / 5, -4 / 5, 0.0, 4 / 5, -1 / 5, 4 / 105, -1 / 280),
    (-1 / 560, 8 / 315, -1 / 5, 8 / 5, -205 / 72, 8 / 5, -1 / 5, 8 / 315, -1 / 560),
    (-7 / 240, 3 / 10, -169 / 120, 61 / 30, 0.0, -61 / 30, 169 / 120, -3 / 10, 7 / 240),
)


def along(function, step):
    """The first three derivatives at 0 of a scalar function of one variable."""
    values = [function(k * step) for k in range(-4, 5)]
    return [
        sum(w * v for w, v in zip(weights, values, strict=True)) / step**order
        for order, weights in enumerate(STENCILS, start=1)
    ]
