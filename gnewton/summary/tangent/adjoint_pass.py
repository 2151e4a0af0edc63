"""The backward pass of several columns at once, step by step: stacked adjoints (k, *shape) of activations.

The batched backward pass of torch has no batched form of many operations (activations, normalisations,
softmax). It calls these column by column and copies the results together. Here the columns join the rows of a
matrix product or the samples of a convolution; activations, normalisations and softmax are worked through
column by column in their own memory; parts of a value are written to one stack. Other operations are called
again, and differentiated by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gnewton.summary.tangent.passes import call_step
from gnewton.summary.tangent.program import Program, Ref, Step, aten
from gnewton.summary.tangent.rules.bilinear import rows_by_row
from gnewton.summary.tangent.rules.elementwise import ELEMENTWISE
from gnewton.summary.tangent.rules.rule import overloads

Consumer = Callable[[int, Tensor], None]
"""(step, its stacked adjoint); the stack must not be changed or kept."""


class AdjointPass:
    """Backward passes of a program from some of its steps to others.

    Args:
        program: the program.
        ends: the steps whose adjoints are given.
        sought: the steps whose adjoints are wanted.

    Attributes:
        possible: whether no step on the way draws random numbers anew when it is called again.
    """

    def __init__(self, program: Program, ends: Iterable[int], sought: Iterable[int]) -> None:
        self._program = program
        self._ends = tuple(ends)
        self._sought = frozenset(sought)
        steps = program.steps
        self._leads = [False] * len(steps)  # to a step that is sought
        for i, step in enumerate(steps):
            self._leads[i] = step.active and (i in self._sought or any(self._leads[j] for j in step.reads))
        self.possible = not any(
            step.random and step.op is not aten.native_dropout.default and self._leads[i]
            for i, step in enumerate(steps)
        )

    def run(self, values: Sequence[Any], stacks: Sequence[Tensor], consume: Consumer) -> None:
        """Send stacks of adjoints (k, *shape) of the ends back, and consume those that are sought, last first."""
        steps = self._program.steps
        pending = _Pending(steps, values, len(stacks[0]))
        for at, stack in zip(self._ends, stacks, strict=True):
            pending.add(at, stack)
        for i in range(max(self._ends), -1, -1):
            found = pending.take(i)
            if found is None:
                continue
            stack, owned = found
            if i in self._sought and isinstance(stack, Tensor):
                consume(i, stack)
            step = steps[i]
            through = [j for j in step.reads if self._leads[j]]
            if not through or step.op is None:
                continue
            if step.output is not None:
                pending.add_output(step.reads[0], step.output, stack, owned)
                continue
            site = _Site(self._program, step, values, values[i], stack, owned, through, pending)
            if step.op in ELEMENTWISE and site.only_first:
                _elementwise(site)
            else:
                _RULES.get(step.op, _by_autograd)(site)


class _Pending:
    """The adjoints that later steps have sent so far, each with whether its memory may be overwritten."""

    def __init__(self, steps: Sequence[Step], values: Sequence[Any], count: int) -> None:
        self._steps = steps
        self._values = values
        self._count = count
        self._single: dict[int, tuple[Tensor, bool]] = {}
        self._several: dict[int, dict[int, tuple[Tensor, bool]]] = {}

    def take(self, i: int) -> tuple[Any, bool] | None:
        """The adjoint of a step: a stack, or those of several values by their number."""
        if i in self._several:
            return {k: stack for k, (stack, _) in self._several.pop(i).items()}, False
        return self._single.pop(i, None)

    def add(self, i: int, stack: Tensor, owned: bool = False) -> None:
        """Add a stack to the adjoint of a step; ``owned``: its memory belongs to no one else."""
        self._single[i] = _sum(self._single.get(i), stack, owned)

    def add_output(self, i: int, k: int, stack: Tensor, owned: bool) -> None:
        """Add a stack to the adjoint of one of several values of a step."""
        outputs = self._several.setdefault(i, {})
        outputs[k] = _sum(outputs.get(k), stack, owned)

    def buffer(self, i: int, like: Tensor) -> Tensor:
        """The adjoint of a step as memory into which a part may be added; zeros where there is none."""
        present = self._single.get(i)
        if present is None:
            target = like.new_zeros(self._count, *self._values[i].shape)
        elif present[1]:
            return present[0]
        else:
            target = present[0].clone(memory_format=torch.contiguous_format)
        self._single[i] = target, True
        return target


def _sum(present: tuple[Tensor, bool] | None, stack: Tensor, owned: bool) -> tuple[Tensor, bool]:
    if present is None:
        return stack, owned
    if present[1]:
        return present[0].add_(stack), True
    return (stack.add_(present[0]) if owned else present[0] + stack), True


class _Site:
    """One step of the way back: its values, its adjoint, and where to send those of its arguments."""

    def __init__(
        self,
        program: Program,
        step: Step,
        values: Sequence[Any],
        value: Any,
        stack: Any,
        owned: bool,
        through: Sequence[int],
        pending: _Pending,
    ) -> None:
        self.program = program
        self.step = step
        self.values = values
        self.value = value
        self.stack = stack
        self.owned = owned
        self.through = through
        self.args, self.kwargs = program.arguments(step, values)
        self._pending = pending

    def leads(self, position: int) -> bool:
        """Whether the argument at a position takes an adjoint."""
        argument = self.step.args[position] if position < len(self.step.args) else None
        return type(argument) is Ref and argument.step in self.through

    @property
    def only_first(self) -> bool:
        return not any(self.leads(k) for k in range(1, len(self.step.args)))

    def send(self, position: int, stack: Tensor, owned: bool) -> None:
        """Add to the adjoint of the argument at a position, after summing over what it was broadcast along."""
        source = self.step.args[position].step
        shape = self.values[source].shape
        if stack.shape[1:] != shape:
            missing = stack.dim() - 1 - len(shape)
            summed = stack.sum_to_size(len(stack), *[1] * missing, *shape)
            stack, owned = summed.reshape(len(stack), *shape), True
        self._pending.add(source, stack, owned)

    def buffer(self) -> Tensor:
        """Memory for the adjoint of the first argument, into which parts are added."""
        return self._pending.buffer(self.step.args[0].step, self.stack)

    def send_to(self, source: int, stack: Tensor) -> None:
        self._pending.add(source, stack, True)

    def target(self) -> Tensor:
        """Memory in the shape of the adjoint, its own if that may be overwritten."""
        return self.stack if self.owned else torch.empty_like(self.stack)


_RULES: dict[Any, Callable[[_Site], None]] = {}


def _back(*names: str) -> Callable[[Callable[[_Site], None]], Callable[[_Site], None]]:
    def enter(function: Callable[[_Site], None]) -> Callable[[_Site], None]:
        _RULES.update(dict.fromkeys(overloads(*names), function))
        return function

    return enter


# --- views and sums -----------------------------------------------------------------------------------------


@_back(
    "view", "_unsafe_view", "reshape", "squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze", "alias", "clone",
    "contiguous", "view_as", "_reshape_alias", "lift_fresh_copy",
)  # fmt: skip
def _reshape(site: _Site) -> None:
    shape = site.args[0].shape
    site.send(0, site.stack.reshape(len(site.stack), *shape), site.owned)


@_back("t", "transpose.int", "permute")
def _permute(site: _Site) -> None:
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


@_back("expand")
def _expand(site: _Site) -> None:
    site.send(0, site.stack, site.owned)


@_back("select.int")
def _select(site: _Site) -> None:
    _, dim, index = site.args
    site.buffer().select(dim % site.args[0].dim() + 1, index).add_(site.stack)


@_back("slice.Tensor")
def _slice(site: _Site) -> None:
    source = site.args[0]
    dim, start, stop, jump = (*site.args[1:], *(0, None, None, 1)[len(site.args) - 1 :])
    at = range(*slice(start, stop, jump).indices(source.shape[dim]))
    part = site.buffer().movedim(dim % source.dim() + 1, 0)
    part[at.start : at.stop : at.step].add_(site.stack.movedim(dim % source.dim() + 1, 0))


@_back("split.Tensor", "split_with_sizes", "unsafe_split.Tensor", "unbind.int", "chunk")
def _split(site: _Site) -> None:
    source, at = site.args[0], 1 if "unbind" in site.step.op.name() else 2
    dim = site.args[at] if len(site.args) > at else 0
    for k, part in enumerate(_parts(site, dim % source.dim())):
        stack = site.stack.get(k)
        if stack is not None:
            part.add_(stack)


def _parts(site: _Site, dim: int) -> Iterable[Tensor]:
    first = next(iter(site.stack.values()))
    target = site._pending.buffer(site.step.args[0].step, first)
    if "unbind" in site.step.op.name():
        return target.unbind(dim + 1)
    return target.split([value.shape[dim] for value in site.value], dim + 1)


@_back("cat", "stack")
def _join(site: _Site) -> None:
    entries, values = site.step.args[0], site.args[0]
    name, dims = site.step.op.name(), site.value.dim()
    dim = (site.args[1] if len(site.args) > 1 else 0) % dims + 1
    if "stack" in name:
        parts: Sequence[Tensor] = site.stack.unbind(dim)
    else:
        parts = site.stack.split([v.shape[dim - 1] if v.dim() == dims else 0 for v in values], dim)
    for entry, part in zip(entries, parts, strict=True):
        if type(entry) is Ref and entry.step in site.through:
            site._pending.add(entry.step, part, False)


@_back("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor")
def _add(site: _Site) -> None:
    name = site.step.op.name()
    alpha = site.kwargs.get("alpha", site.args[2] if len(site.args) > 2 else 1)
    signs = (-alpha, 1) if "rsub" in name else (1, -alpha if "sub" in name else alpha)
    single = not (site.leads(0) and site.leads(1))  # else two steps read the same memory
    for k, sign in enumerate(signs):
        if site.leads(k):
            plain = sign == 1
            site.send(k, site.stack if plain else site.stack * sign, not plain or (site.owned and single))


@_back("neg")
def _neg(site: _Site) -> None:
    site.send(0, torch.neg(site.stack, out=site.target()), True)


@_back("mul.Scalar", "div.Scalar")
def _scale(site: _Site) -> None:
    site.send(0, site.step.op(site.stack, site.args[1]), True)


@_back("mul.Tensor")
def _mul(site: _Site) -> None:
    both = site.leads(0) and site.leads(1)
    for k in (0, 1):
        if site.leads(k):
            factor = site.args[1 - k]
            out = site.target() if isinstance(factor, Tensor) and not both else None
            site.send(k, torch.mul(site.stack, factor, out=out), True)


@_back("div.Tensor")
def _div(site: _Site) -> None:
    a, b = site.args[:2]
    if site.leads(1):
        site.send(1, site.stack * (-a / (b * b)), True)
    if site.leads(0):
        site.send(0, site.stack / b, True)


@_back("sum", "mean", "sum.dim_IntList", "mean.dim")
def _sum_back(site: _Site) -> None:
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


@_back("native_dropout")
def _dropout(site: _Site) -> None:
    p, kept = site.args[1], site.value[1]
    site.send(0, site.stack[0] * kept * (0.0 if p == 1 else 1.0 / (1.0 - p)), True)


# --- products -----------------------------------------------------------------------------------------------


def _matrix(site: _Site, left: int, right: int, alpha: Any = 1) -> None:
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


@_back("mm", "bmm")
def _product(site: _Site) -> None:
    _matrix(site, 0, 1)


@_back("addmm", "baddbmm")
def _biased_product(site: _Site) -> None:
    _matrix(site, 1, 2, site.kwargs.get("alpha", 1))
    if site.leads(0):
        beta = site.kwargs.get("beta", 1)
        site.send(0, site.stack if beta == 1 else site.stack * beta, beta != 1)


@_back("convolution")
def _convolution(site: _Site) -> None:
    """With the kernel fixed: the transposed convolution of all columns, or the plain one of a transposed one."""
    a, weight, _, stride, padding, dilation, transposed, _, groups = site.args
    if not site.leads(0) or site.leads(1) or site.leads(2):
        return _by_autograd(site)
    wide = site.stack.flatten(0, 1)
    if transposed:
        shape, extra = False, [0] * len(stride)
    else:
        shape = True
        extra = [
            n - ((m - 1) * s - 2 * p + d * (w - 1) + 1)
            for n, m, s, p, d, w in zip(
                a.shape[2:], site.value.shape[2:], _each(stride, a), _each(padding, a), _each(dilation, a),
                weight.shape[2:], strict=True,
            )
        ]  # fmt: skip
    pulled = aten.convolution.default(wide, weight, None, stride, padding, dilation, shape, extra, groups)
    site.send(0, pulled.unflatten(0, (len(site.stack), -1)), True)
    return None


def _each(numbers: Sequence[int], a: Tensor) -> list[int]:
    return list(numbers) if len(numbers) == a.dim() - 2 else [numbers[0]] * (a.dim() - 2)


# --- column by column ---------------------------------------------------------------------------------------


def _elementwise(site: _Site) -> None:
    with torch.enable_grad():
        x = site.args[0].detach().requires_grad_()
        value = site.step.op(x, *site.args[1:], **site.kwargs)
    (slope,) = torch.autograd.grad(value, x, torch.ones_like(value))
    site.send(0, torch.mul(site.stack, slope, out=site.target()), True)


@_back("_softmax", "softmax.int", "_safe_softmax", "_log_softmax", "log_softmax.int")
def _softmax(site: _Site) -> None:
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


@_back("native_layer_norm")
def _layer_norm(site: _Site) -> None:
    x, normalised, gain, *_ = site.args
    if set(site.stack) != {0} or not site.only_first:
        return _by_autograd(site)
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


@_back("native_batch_norm", "_native_batch_norm_legit_functional")
def _batch_norm(site: _Site) -> None:
    _, gain, _, _, variance, training, _, eps = site.args[:8]
    if training or set(site.stack) != {0} or not site.only_first:
        return _by_autograd(site)
    scale = (variance + eps).rsqrt()
    scale = scale if gain is None else scale * gain
    site.send(0, site.stack[0] * scale.view(-1, *[1] * (site.args[0].dim() - 2)), True)
    return None


def _by_autograd(site: _Site) -> None:
    """Any other operation: called again, and differentiated by torch for every column."""
    own = list(site.values)
    with torch.enable_grad():
        for j in site.through:
            own[j] = site.values[j].detach().requires_grad_()
        value = call_step(site.program, site.step, own)
        arguments = [own[j] for j in site.through]
        stacks = site.stack if isinstance(site.stack, dict) else {None: site.stack}
        outputs = [value if k is None else value[k] for k in stacks]
        given = [(v, s) for v, s in zip(outputs, stacks.values(), strict=True) if v.requires_grad]
        columns = [
            torch.autograd.grad(
                [v for v, _ in given], arguments, [s[c] for _, s in given],
                retain_graph=True, materialize_grads=True,
            )
            for c in range(len(given[0][1]))
        ] if given else []  # fmt: skip
    for j, parts in zip(site.through, zip(*columns, strict=True), strict=False):
        site.send_to(j, torch.stack(parts))
