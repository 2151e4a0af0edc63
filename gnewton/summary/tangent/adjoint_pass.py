"""The backward pass of several columns at once: stacked adjoints (k, *shape) of activations, step by step.

torch's batched backward pass lacks a batched form of many operations (activations, normalisations, softmax).
It calls them column by column and concatenates the results. The rules here avoid both. The columns join the
rows of a matrix product or the samples of a convolution. Activations, normalisations and softmax take one
column after the other in their own memory. The parts of a value go to one stack. Any other operation is
called again, and torch differentiates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.adjoint_site import BACKWARD, AdjointSite, Pending, back
from gnewton.summary.tangent.passes import call_step
from gnewton.summary.tangent.program import Program, Ref, aten
from gnewton.summary.tangent.rules.bilinear import rows_by_row
from gnewton.summary.tangent.rules.elementwise import ELEMENTWISE

Consumer = Callable[[int, Tensor], None]
"""(step, its stacked adjoint); the stack must not be changed or kept."""


class AdjointPass:
    """Backward passes of a program from some of its steps to others.

    Args:
        program: the program.
        ends: the steps whose adjoints are given.
        receivers: the steps whose adjoints are read.

    Attributes:
        possible: whether no step on the way draws random numbers anew when it is called again.
    """

    def __init__(self, program: Program, ends: Iterable[int], receivers: Iterable[int]) -> None:
        self._program = program
        self._ends = tuple(ends)
        self._receivers = frozenset(receivers)
        steps = program.steps
        self._leads = [False] * len(steps)  # to a receiver
        for i, step in enumerate(steps):
            self._leads[i] = step.active and (i in self._receivers or any(self._leads[j] for j in step.reads))
        self.possible = not any(
            step.random and step.op is not aten.native_dropout.default and self._leads[i]
            for i, step in enumerate(steps)
        )

    def run(self, values: Sequence[Any], stacks: Sequence[Tensor], consume: Consumer) -> None:
        """Send stacks (k, *shape) of adjoints of the ends back, and consume those of the receivers."""
        steps = self._program.steps
        pending = Pending(steps, values, len(stacks[0]))
        for at, stack in zip(self._ends, stacks, strict=True):
            pending.add(at, stack)
        for i in range(max(self._ends), -1, -1):
            arrived = pending.take(i)
            if arrived is None:
                continue
            stack, owned = arrived
            if i in self._receivers and isinstance(stack, Tensor):
                consume(i, stack)
            step = steps[i]
            through = [j for j in step.reads if self._leads[j]]
            if not through or step.op is None:
                continue
            if step.output is not None:
                pending.add_output(step.reads[0], step.output, stack, owned)
                continue
            site = AdjointSite(self._program, step, values, values[i], stack, owned, through, pending)
            if step.op in ELEMENTWISE and site.only_first:
                elementwise(site)
            else:
                BACKWARD.get(step.op, by_autograd)(site)


# --- views and sums -----------------------------------------------------------------------------------------


@back(
    "view", "_unsafe_view", "reshape", "squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze", "alias",
    "clone", "contiguous", "view_as", "_reshape_alias", "lift_fresh_copy",
)  # fmt: skip
def _reshape(site: AdjointSite) -> None:
    shape = site.args[0].shape
    site.send(0, site.stack.reshape(len(site.stack), *shape), site.owned)


@back("t", "transpose.int", "permute")
def _permute(site: AdjointSite) -> None:
    dims = site.args[0].dim()
    if "permute" in site.step.op.name():
        order = [d % dims for d in site.args[1]]
    else:
        order = list(range(dims))
        if dims > 1:
            i, j = (d % dims for d in (site.args[1:] or (0, 1)))
            order[i], order[j] = order[j], order[i]
    inverse = [0, *(1 + order.index(d) for d in range(dims))]
    site.send(0, site.stack.permute(inverse), site.owned)


@back("expand")
def _expand(site: AdjointSite) -> None:
    site.send(0, site.stack, site.owned)


@back("select.int")
def _select(site: AdjointSite) -> None:
    _, dim, index = site.args
    site.buffer().select(dim % site.args[0].dim() + 1, index).add_(site.stack)


@back("slice.Tensor")
def _slice(site: AdjointSite) -> None:
    source = site.args[0]
    dim, start, stop, jump = (site.argument(k, d) for k, d in enumerate((0, None, None, 1), start=1))
    at = range(*slice(start, stop, jump).indices(source.shape[dim]))
    part = site.buffer().movedim(dim % source.dim() + 1, 0)
    part[at.start : at.stop : at.step].add_(site.stack.movedim(dim % source.dim() + 1, 0))


@back("split.Tensor", "split_with_sizes", "unsafe_split.Tensor", "unbind.int", "chunk")
def _split(site: AdjointSite) -> None:
    source, at = site.args[0], 1 if "unbind" in site.step.op.name() else 2
    dim = site.args[at] if len(site.args) > at else 0
    for k, part in enumerate(_parts(site, dim % source.dim())):
        stack = site.stack.get(k)
        if stack is not None:
            part.add_(stack)


def _parts(site: AdjointSite, dim: int) -> Iterable[Tensor]:
    first = next(iter(site.stack.values()))
    target = site.pending.buffer(site.step.args[0].step, first)
    if "unbind" in site.step.op.name():
        return target.unbind(dim + 1)
    return target.split([value.shape[dim] for value in site.value], dim + 1)


@back("cat", "stack")
def _join(site: AdjointSite) -> None:
    entries, values = site.step.args[0], site.args[0]
    name, dims = site.step.op.name(), site.value.dim()
    dim = (site.args[1] if len(site.args) > 1 else 0) % dims + 1
    if "stack" in name:
        parts: Sequence[Tensor] = site.stack.unbind(dim)
    else:
        parts = site.stack.split([v.shape[dim - 1] if v.dim() == dims else 0 for v in values], dim)
    for entry, part in zip(entries, parts, strict=True):
        if type(entry) is Ref and entry.step in site.through:
            site.pending.add(entry.step, part, False)


@back("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def _add(site: AdjointSite) -> None:
    name = site.step.op.name()
    alpha = site.kwargs.get("alpha", site.args[2] if len(site.args) > 2 else 1)
    signs = (-alpha, 1) if "rsub" in name else (1, -alpha if "sub" in name else alpha)
    single = not (site.leads(0) and site.leads(1))  # else two steps read the same memory
    for k, sign in enumerate(signs):
        if site.leads(k):
            plain = sign == 1
            site.send(k, site.stack if plain else site.stack * sign, not plain or (site.owned and single))


@back("neg")
def _neg(site: AdjointSite) -> None:
    site.send(0, torch.neg(site.stack, out=site.target()), True)


@back("mul.Scalar", "div.Scalar")
def _scale(site: AdjointSite) -> None:
    site.send(0, site.step.op(site.stack, site.args[1]), True)


@back("mul.Tensor")
def _mul(site: AdjointSite) -> None:
    both = site.leads(0) and site.leads(1)
    for k in (0, 1):
        if site.leads(k):
            factor = site.args[1 - k]
            out = site.target() if isinstance(factor, Tensor) and not both else None
            site.send(k, torch.mul(site.stack, factor, out=out), True)


@back("div.Tensor")
def _div(site: AdjointSite) -> None:
    a, b = site.args[:2]
    if site.leads(1):
        site.send(1, site.stack * (-a / (b * b)), True)
    if site.leads(0):
        site.send(0, site.stack / b, True)


@back("sum", "mean", "sum.dim_IntList", "mean.dim")
def _sum_back(site: AdjointSite) -> None:
    x, name = site.args[0], site.step.op.name()
    dims = site.args[1] if "dim" in name and len(site.args) > 1 else None
    axes = sorted(d % x.dim() for d in (dims or range(x.dim())))
    stack = site.stack
    if not (len(site.args) > 2 and site.args[2]):
        for axis in axes:
            stack = stack.unsqueeze(axis + 1)
    if "mean" in name:
        count = 1
        for axis in axes:
            count *= x.shape[axis]
        stack = stack / max(count, 1)
    site.send(0, stack.to(x.dtype).expand(len(stack), *x.shape), False)


@back("native_dropout")
def _dropout(site: AdjointSite) -> None:
    p, kept = site.args[1], site.value[1]
    site.send(0, site.stack[0] * kept * (0.0 if p == 1 else 1.0 / (1.0 - p)), True)


# --- products -----------------------------------------------------------------------------------------------


def _matrix(site: AdjointSite, left: int, right: int, alpha: Any = 1) -> None:
    a, b = site.args[left], site.args[right]
    stack = site.stack if alpha == 1 else site.stack * alpha
    k = len(stack)
    if site.leads(left):
        if a.dim() == 2:
            pulled = torch.mm(stack.reshape(-1, b.shape[1]), b.T).view(k, *a.shape)
        else:
            pulled = rows_by_row(stack, b.mT)
        site.send(left, pulled, True)
    if site.leads(right):
        pulled = torch.matmul(a.T, stack) if a.dim() == 2 else rows_by_row(a.mT, stack)
        site.send(right, pulled, True)


@back("mm", "bmm")
def _product(site: AdjointSite) -> None:
    _matrix(site, 0, 1)


@back("addmm", "baddbmm")
def _biased_product(site: AdjointSite) -> None:
    _matrix(site, 1, 2, site.kwargs.get("alpha", 1))
    if site.leads(0):
        beta = site.kwargs.get("beta", 1)
        site.send(0, site.stack if beta == 1 else site.stack * beta, beta != 1)


@back("convolution")
def _convolution(site: AdjointSite) -> None:
    """The adjoint of the input, of all columns at once."""
    a, weight, _, *options = site.args
    if not site.leads(0) or site.leads(1) or site.leads(2):
        return by_autograd(site)
    wide, mask = site.stack.flatten(0, 1), [True, False, False]
    like = a.new_empty((len(wide), *a.shape[1:]))  # torch reads its shape alone
    pulled = aten.convolution_backward.default(wide, like, weight, None, *options, mask)[0]
    site.send(0, pulled.unflatten(0, (len(site.stack), -1)), True)
    return None


# --- column by column ---------------------------------------------------------------------------------------


def elementwise(site: AdjointSite) -> None:
    """A function of one argument, entry by entry: its slope is formed once for all columns."""
    with torch.enable_grad():
        x = site.args[0].detach().requires_grad_()
        value = site.step.op(x, *site.args[1:], **site.kwargs)
    (slope,) = torch.autograd.grad(value, x, torch.ones_like(value))
    site.send(0, torch.mul(site.stack, slope, out=site.target()), True)


@back("_softmax", "softmax.int", "_safe_softmax", "_log_softmax", "log_softmax.int")
def _softmax(site: AdjointSite) -> None:
    dim = site.args[1] % max(site.value.dim(), 1)
    logarithm = "log" in site.step.op.name()
    p = site.value.exp() if logarithm else site.value
    target = site.target()
    for out, column in zip(target, site.stack, strict=True):
        if logarithm:
            torch.sub(column, p * column.sum(dim, keepdim=True), out=out)
        else:
            weighted = column * p
            torch.addcmul(weighted, p, weighted.sum(dim, keepdim=True), value=-1, out=out)
    site.send(0, target, True)


@back("native_layer_norm")
def _layer_norm(site: AdjointSite) -> None:
    x, normalised, gain, *_ = site.args
    if set(site.stack) != {0} or not site.only_first:
        return by_autograd(site)
    _, mean, r = site.value
    axes = tuple(range(-len(normalised), 0))
    hat = (x - mean) * r
    stack = site.stack[0]
    target = torch.empty(stack.shape, dtype=stack.dtype, device=stack.device)
    for out, column in zip(target, stack, strict=True):
        g = column if gain is None else column * gain
        along = (g * hat).mean(axes, keepdim=True)
        torch.sub(g, g.mean(axes, keepdim=True), out=out)
        out.addcmul_(hat, along, value=-1).mul_(r)
    site.send(0, target, True)
    return None


@back("native_batch_norm", "_native_batch_norm_legit_functional")
def _batch_norm(site: AdjointSite) -> None:
    _, gain, _, _, variance, training, _, eps = site.args[:8]
    if training or set(site.stack) != {0} or not site.only_first:
        return by_autograd(site)
    scale = (variance + eps).rsqrt()
    scale = scale if gain is None else scale * gain
    site.send(0, site.stack[0] * scale.view(-1, *[1] * (site.args[0].dim() - 2)), True)
    return None


def by_autograd(site: AdjointSite) -> None:
    """Any other operation: called again, and differentiated by torch for every column."""
    values = list(site.values)
    with torch.enable_grad():
        for j in site.through:
            values[j] = site.values[j].detach().requires_grad_()
        value = call_step(site.program, site.step, values)
        arguments = [values[j] for j in site.through]
        stacks = site.stack if isinstance(site.stack, dict) else {None: site.stack}
        outputs = [value if k is None else value[k] for k in stacks]
        pairs = [(v, s) for v, s in zip(outputs, stacks.values(), strict=True) if v.requires_grad]
        columns = [
            torch.autograd.grad(
                [v for v, _ in pairs], arguments, [s[c] for _, s in pairs],
                retain_graph=True, materialize_grads=True,
            )
            for c in range(len(pairs[0][1]))
        ] if pairs else []  # fmt: skip
    for j, parts in zip(site.through, zip(*columns, strict=True), strict=False):
        site.pending.add(j, torch.stack(parts), owned=True)
