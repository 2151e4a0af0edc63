"""How much memory the tangents take, and how a batch is split to bound it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gnewton.summary.engine import Plan
from gnewton.summary.graph import Program, Ref, aten

SHARE = 0.5  # of the free memory, where no limit is given


def free_memory(device: torch.device) -> int:
    """Bytes free on a device; a large number where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + unused
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 1 << 62


def is_exhausted(error: BaseException) -> bool:
    """Whether an exception says that there is no memory left; on the CPU torch has no type for that."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def tangent_bytes(program: Program, plan: Plan, *, third: bool) -> int:
    """Peak bytes of the tangents of a pass, with two more stacks of the largest layer for working on it."""
    steps, copies = program.steps, 2 if third else 1
    started: list[frozenset[int]] = [frozenset()] * len(steps)
    for name, i in program.parameters.items():
        started[i] = frozenset((plan.groups[name],))
    held = [0] * len(steps)
    entries = [0] * len(steps)
    live = peak = 0
    trainable = set(program.parameters.values())
    for i, step in enumerate(steps):
        if all(type(n) is int for n in step.shape):
            entries[i] = math.prod(step.shape)
        else:  # as many as a mask picks: of what it picks from
            entries[i] = max((entries[j] for j in step.reads), default=0)
        if not step.active or i in trainable:
            continue
        started[i] = frozenset().union(*(started[j] for j in step.reads))
        itemsize = step.dtype.itemsize if step.dtype is not None else 4
        if step.output is None:
            held[i] = entries[i] * itemsize * len(started[i]) * copies
        live += held[i]
        peak = max(peak, live + held[i])
        for j in step.reads:
            if plan.last_tangent[j] == i:
                live -= held[j]
    return peak


def chunks(samples: int, parts: int) -> list[tuple[int, int]]:
    """Ranges that split the samples into ``parts`` pieces whose lengths differ by one at most."""
    parts = max(1, min(samples, parts))
    base, longer = divmod(samples, parts)
    ranges, start = [], 0
    for k in range(parts):
        end = start + base + (k < longer)
        ranges.append((start, end))
        start = end
    return ranges


def cut(tree: Any, samples: int, lo: int, hi: int) -> Any:
    """Samples lo … hi of every tensor whose first axis runs over the samples."""
    return pytree.tree_map_only(
        Tensor, lambda t: t[lo:hi] if t.dim() > 0 and t.shape[0] == samples else t, tree
    )


def cut_draws(
    whole: Program, part: Program, values: Mapping[int, Tensor], samples: int, lo: int, hi: int
) -> dict[int, Tensor] | None:
    """The whole batch's random draws, cut to a part of it, by step of the part's program.

    None where the two programs do not draw alike.
    """
    theirs = [i for i, step in enumerate(part.steps) if step.random and step.needed]
    if len(theirs) != len(values):
        return None
    result = {}
    for i, value in zip(theirs, values.values(), strict=True):
        shape = part.steps[i].shape
        if len(shape) != value.dim():
            return None
        for axis, (small, large) in enumerate(zip(shape, value.shape, strict=True)):
            if small == large:
                continue
            factor = large // samples
            if factor * samples != large or factor * (hi - lo) != small:
                return None
            value = value.narrow(axis, factor * lo, small)
        result[i] = value
    return result


def mean_weight(program: Program) -> tuple[int | None, bool]:
    """Where the loss is a mean of log-likelihoods: the step whose second value is the sum of their weights.

    The second result says whether parts of a batch may be joined at all: not where such a weighted mean is
    only a part of the loss.
    """
    steps = program.steps
    i = program.loss
    while steps[i].op in (aten.view.default, aten.alias.default, aten.squeeze.default):
        i = steps[i].reads[0]
    last = steps[i].reads[0] if steps[i].output == 0 else i
    means = [
        j
        for j, step in enumerate(steps)
        if step.needed
        and step.op in (aten.nll_loss_forward.default, aten.nll_loss2d_forward.default)
        and step.args[3] == 1
    ]
    if means == [last]:
        return last, True
    return None, all(steps[j].args[2] is None and type(steps[j].args[1]) is Ref for j in means)
