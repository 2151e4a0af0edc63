"""Operations linear in the arguments that have tangents: they pass tangents on and contribute nothing.

Common ones act on the stack, with their axes shifted by one; the others act through ``vmap``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from gnewton.summary.likelihoods import LIKELIHOOD
from gnewton.summary.tangent.program import Ref
from gnewton.summary.tangent.rules.general import general_rule
from gnewton.summary.tangent.rules.product import joined, take_gradient
from gnewton.summary.tangent.rules.rule import RULES, OperationSite, Passed, TangentRule, overloads, rule
from gnewton.summary.tangent.tangent import Rows, Tangent, union

# --- views --------------------------------------------------------------------------------------------------


def _axis(dim: int, dims: int) -> int:
    """The axis of a stack that is axis ``dim`` of a value with ``dims`` axes."""
    return dim + 1 if dim >= 0 else dim + dims + 1


@rule(
    *overloads("view", "_unsafe_view", "reshape", "squeeze", "squeeze.dim", "squeeze.dims", "unsqueeze"),
    view=True,
)
def _reshape(site: OperationSite) -> Tangent | None:
    shape = site.value.shape
    return _keeping_leaf(
        site, site.moving(0).map(lambda rows: rows.reshape(rows.shape[0], *shape), fresh=False)
    )


@rule(*overloads("t", "transpose.int", "permute"), view=True)
def _permute(site: OperationSite) -> Tangent | None:
    dims = site.args[0].dim()
    if "permute" in site.step.op.name():
        order = [0, *(_axis(d, dims) for d in site.args[1])]
    else:
        order = list(range(dims + 1))
        if dims > 1:
            i, j = (_axis(d, dims) for d in (site.args[1:] or (0, 1)))
            order[i], order[j] = order[j], order[i]
    return _keeping_leaf(site, site.moving(0).map(lambda rows: rows.permute(order), fresh=False))


@rule(
    *overloads("alias", "clone", "lift_fresh_copy", "lift_fresh", "contiguous", "view_as", "_reshape_alias"),
    view=True,
)
def _identity(site: OperationSite) -> Tangent | None:
    return _keeping_leaf(site, site.moving(0).map(lambda rows: rows, fresh=False))


@rule(LIKELIHOOD)
def _marked(site: OperationSite) -> Tangent | None:
    return site.moving(0).map(lambda rows: rows, fresh=False)


@rule(*overloads("_to_copy"))
def _convert(site: OperationSite) -> Tangent | None:
    like = site.value
    return site.moving(0).map(lambda rows: rows.to(dtype=like.dtype, device=like.device), fresh=False)


@rule(*overloads("expand"))
def _expand(site: OperationSite) -> Tangent | None:
    return site.moving(0).spread(site.value.shape)


def _keeping_leaf(site: OperationSite, out: Tangent) -> Tangent:
    out.leaf = site.moving(0).leaf
    return out


# --- sums ---------------------------------------------------------------------------------------------------


def _scaled(tangent: Tangent, factor: Any) -> Tangent:
    return tangent if factor == 1 else tangent.map(lambda rows: rows * factor, fresh=True)


@rule(
    *overloads("add.Tensor", "sub.Tensor", "add.Scalar", "sub.Scalar", "rsub.Scalar", "rsub.Tensor"),
    takes_gradient=(0, 1),
)
def _add(site: OperationSite) -> Tangent | None:
    name = site.step.op.name()
    alpha = site.kwargs.get("alpha", site.args[2] if len(site.args) > 2 else 1)
    signs = (-alpha, 1) if "rsub" in name else (1, -alpha if "sub" in name else alpha)
    shape, adjoint = site.value.shape, site.adjoint()
    terms: list[Tangent | None] = []
    for i, sign in enumerate(signs):
        tangent = site.tangent(i)
        if tangent is not None:
            if tangent.leaf and adjoint is not None:
                take_gradient(site.sums, tangent.first, adjoint, sign)
            terms.append(_scaled(tangent, sign).spread(shape))
    return joined(terms)


@rule(*overloads("neg"))
def _neg(site: OperationSite) -> Tangent | None:
    return site.moving(0).map(lambda rows: -rows, fresh=True)


@rule(*overloads("mul.Scalar", "div.Scalar"))
def _scale(site: OperationSite) -> Tangent | None:
    op, factor = site.step.op, site.args[1]
    return site.moving(0).map(lambda rows: op(rows, factor), fresh=True)


@rule(*overloads("sum", "mean", "sum.dim_IntList", "mean.dim"))
def _sum(site: OperationSite) -> Tangent | None:
    x = site.args[0]
    dims = site.argument(1) if "dim" in site.step.op.name() else None
    if not dims:
        dims = list(range(x.dim()))
    axes = [_axis(d, x.dim()) for d in dims]
    keep = bool(site.argument(2, False))
    reduce = torch.mean if "mean" in site.step.op.name() else torch.sum
    if not axes or x.dim() == 0:
        return site.moving(0).map(lambda rows: rows, fresh=False)
    dtype = site.value.dtype
    return site.moving(0).map(lambda rows: reduce(rows, dim=axes, keepdim=keep, dtype=dtype), fresh=True)


# --- through vmap -------------------------------------------------------------------------------------------


def _linear_in(positions: tuple[int, ...], fixed: dict[int, Any]) -> Any:
    """The rule of an operation that is jointly linear in the arguments at ``positions``.

    ``fixed`` replaces arguments for the linear part, such as the value of a padding, by values or by
    functions of all arguments.
    """

    def function(site: OperationSite) -> Passed:
        if any(site.tangent(i) is not None for i in range(len(site.args)) if i not in positions):
            return general_rule(site)
        moving: list[tuple[tuple[int, ...], Tangent]] = []
        args = [list(a) if isinstance(a, list) else a for a in site.args]
        for i in positions:
            argument = site.step.args[i] if i < len(site.step.args) else None
            entries = argument if type(argument) is list else [argument]
            for j, entry in enumerate(entries):
                path = (i, j) if type(argument) is list else (i,)
                tangent = site.tangent_of(entry)
                if tangent is not None:
                    moving.append((path, tangent))
                elif type(entry) is Ref:
                    _put(args, path, torch.zeros_like(_get(args, path)))
                elif isinstance(entry, (int, float)):
                    _put(args, path, 0)
        for i, value in fixed.items():
            if i < len(args):
                args[i] = value(args) if callable(value) else value

        def call(*rows: Tensor) -> Any:
            for (path, _), row in zip(moving, rows, strict=True):
                _put(args, path, row)
            return site.step.op(*args, **site.kwargs)

        first = _apply(call, [tangent.first for _, tangent in moving])
        bent = [tangent.second for _, tangent in moving]
        second: list[Rows | None] = [None] * len(first)
        if any(rows is not None for rows in bent):
            second = _apply(call, bent, [tangent.first for _, tangent in moving])
        out: list[Tangent | None] = [
            None if a is None else Tangent(a, b) for a, b in zip(first, second, strict=True)
        ]
        return out if not isinstance(site.value, Tensor) else out[0]

    return function


def _apply(call: Any, rows: Any, like: Any = None) -> list[Any]:
    """``call`` vmapped over stacks that are widened to the same groups."""
    groups = union(*(r.groups for r in rows if r is not None))
    stacks = [
        r.widen(groups) if r is not None else k.parts[0].new_zeros((len(groups), *k.shape))
        for r, k in zip(rows, like or rows, strict=True)
    ]
    result = vmap(call)(*stacks)
    results = result if isinstance(result, (list, tuple)) else [result]
    return [Rows(groups, [r], owned=False) if r.is_floating_point() else None for r in results]


def _get(args: list[Any], path: tuple[int, ...]) -> Any:
    return args[path[0]] if len(path) == 1 else args[path[0]][path[1]]


def _put(args: list[Any], path: tuple[int, ...], value: Any) -> None:
    if len(path) == 1:
        args[path[0]] = value
    else:
        args[path[0]][path[1]] = value


def enter_linear(names: str, positions: tuple[int, ...] = (0,), fixed: dict[int, Any] | None = None) -> None:
    """Enter operations that are linear in the arguments at ``positions``."""
    for op in overloads(*names.split()):
        RULES[op] = TangentRule(_linear_in(positions, fixed or {}))


def _end(args: list[Any]) -> int | None:
    """The end of a slice. That of ``x[::2]`` is the largest integer, beyond which vmap would count."""
    return None if args[4] is None else min(args[4], args[0].shape[args[2]])


enter_linear(
    "slice.Tensor select.int narrow diagonal unfold tril triu flip roll rot90 movedim.int swapaxes "
    "unflatten.int index.Tensor index_select gather take cumsum trace diag_embed repeat "
    "repeat_interleave.self_int split.Tensor split_with_sizes unbind.int chunk unsafe_split.Tensor "
    "unsafe_chunk tensor_split.sections "
    "avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d "
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d upsample_nearest1d.vec upsample_nearest2d.vec "
    "upsample_nearest3d.vec "
    "upsample_linear1d.vec upsample_bilinear2d.vec upsample_bicubic2d.vec upsample_trilinear3d.vec "
    "pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im reflection_pad1d reflection_pad2d "
    "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"
)
enter_linear(  # what backward passes inside a model leave
    "avg_pool2d_backward avg_pool3d_backward _adaptive_avg_pool2d_backward _adaptive_avg_pool3d_backward "
    "max_pool2d_with_indices_backward max_pool3d_with_indices_backward adaptive_max_pool2d_backward "
    "adaptive_max_pool3d_backward upsample_nearest1d_backward upsample_nearest2d_backward "
    "upsample_nearest3d_backward upsample_linear1d_backward upsample_bilinear2d_backward "
    "upsample_bicubic2d_backward upsample_trilinear3d_backward reflection_pad1d_backward "
    "reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward "
    "replication_pad2d_backward replication_pad3d_backward"
)
enter_linear("cat stack", (0,))
enter_linear("where.self", (1, 2))
enter_linear("select_scatter diagonal_scatter", (0, 1))
enter_linear("slice_scatter", (0, 1), {4: _end})
enter_linear("index_put", (0, 2))
enter_linear("scatter.src scatter_add index_add", (0, 3))
enter_linear("masked_fill.Scalar", (0,), {2: 0})
enter_linear("constant_pad_nd", (0,), {2: 0})


@rule(*overloads("native_dropout"))
def _dropout(site: OperationSite) -> Passed:
    """The mask is drawn in the primal pass and constant afterwards."""
    _, p, *_ = site.args
    kept = site.value[1]
    scale = 0.0 if p == 1 else 1.0 / (1.0 - p)
    return [site.moving(0).map(lambda rows: rows * kept * scale, fresh=True), None]


@rule(*overloads("embedding"))
def _embedding(site: OperationSite) -> Tangent | None:
    """Rows of the table; the padding row has no gradient, hence no tangent."""
    _, indices = site.args[:2]
    padding = site.argument(2, -1)
    out = site.moving(0).map(lambda rows: rows[:, indices], fresh=True)
    if padding >= 0:
        kept = (indices != padding).unsqueeze(-1)
        out = out.map(lambda rows: rows * kept, fresh=True)
    return out
