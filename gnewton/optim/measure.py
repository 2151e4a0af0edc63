"""The objective along directions: exact summaries on the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from gnewton.arguments import check_name
from gnewton.backend import rank, sum_over_processes, world_size
from gnewton.errors import InputError
from gnewton.optim.grouping import Grouping
from gnewton.optim.hyperparameters import MATRICES
from gnewton.partition import Partition
from gnewton.partition.slices import Group
from gnewton.summary import Summarizer
from gnewton.summary.api import EngineName
from gnewton.summary.batch import batch_size, opened
from gnewton.summary.isolation import preserve_torch_streams
from gnewton.summary.problem import Carrier, Forward, LossFunction, Problem
from gnewton.wrappers import plain_name


@dataclass(frozen=True)
class Measured:
    """A summary of the objective that is minimised, float64 on the CPU.

    The entries are pairs (group s, direction j) of k directions u_1 … u_k, with j running faster, R = S·k.
    A direction that all groups share is measured as a whole: its numbers stand at the first group, and its
    other entries are zero.

    Attributes:
        gradient, hessian, third: ḡ (R,), H̄ (R, R) or its diagonal (R,), D3 (R,): zeros if not measured.
        norms: ‖P_s u_j‖, (R,); of a shared direction ‖u_j‖ at the first group.
        lengths: ‖P_s u_j‖ of every entry, (R,).
        silent: entries that cannot be told from rounding noise, (R,), bool: along every direction of the
            group the gradient is within its noise level, or the curvature has contributions and is within
            its own (:class:`~gnewton.summary.result.Summary`). Where all would be silent, but not all
            gradients are within their noise, the loss is linear: the curvature is then zero instead.
        sizes: ‖θ_s‖, (S,).
        loss: the loss of the batch, as the loss function gives it.
    """

    gradient: Tensor
    hessian: Tensor
    third: Tensor
    norms: Tensor
    lengths: Tensor
    silent: Tensor
    sizes: Tensor
    loss: float

    @property
    def finite(self) -> bool:
        """Whether all numbers that rates depend on are finite."""
        parts = (self.gradient, self.hessian, self.third, self.norms)
        return all(bool(torch.isfinite(part).all()) for part in parts)


@dataclass(frozen=True)
class Objective:
    """The objective ±L of a model, and how its derivatives are computed.

    Attributes:
        model, loss_fn, forward, engine, max_memory: as in :class:`gnewton.summary.Summarizer`.
        maximize: whether the objective is −L.
        matrix: the matrix of a summary, see :class:`gnewton.summary.Summarizer`; only that of the Hessian
            can be negated.
    """

    model: nn.Module
    loss_fn: LossFunction
    forward: Forward | None = None
    maximize: bool = False
    engine: EngineName = "auto"
    max_memory: int | None = None
    matrix: str = "hessian"

    def __post_init__(self) -> None:
        check_name("matrix", self.matrix, MATRICES)
        if self.maximize and self.matrix != "hessian":
            raise InputError(f"matrix={self.matrix}: must be hessian where the loss is maximised")


class Measurer:
    """Summaries of an objective plus weight decay, ±L + Σ (wd/2)‖θ_i‖², over one partition.

    Args:
        objective: ±L.
        grouping: the groups of the model's parameters.
        labels: names of the directions of one summary; a single direction has the empty name.
        shared: numbers of the directions that are measured as a whole, not group by group.
        third, diagonal: as in :class:`gnewton.summary.Summarizer`.

    Attributes:
        places: the numbers of a summary by name, each with its place among all entries (:func:`numbered`).
        sign: −1 if the objective is maximised, else 1.
    """

    def __init__(
        self,
        objective: Objective,
        grouping: Grouping,
        *,
        labels: tuple[str, ...] = ("",),
        shared: tuple[int, ...] = (),
        third: bool = True,
        diagonal: bool = False,
    ) -> None:
        model, loss_fn, forward = objective.model, objective.loss_fn, objective.forward
        self._grouping = grouping
        self._problem = Problem(model, loss_fn, grouping.partition, forward)
        several = len(labels) > 1
        whole: nn.Module = Stack(model, len(labels)) if several else model
        partition = whole.partition(grouping.partition, labels, shared) if isinstance(whole, Stack) else None
        self._names = [
            [whole.name(name, j) if isinstance(whole, Stack) else name for name in grouping.names]
            for j in range(len(labels))
        ]
        self.places = numbered(grouping.partition, labels, shared)
        self._at = torch.tensor(list(self.places.values()), device=self._problem.device())
        self._shared = shared
        self.sign = -1.0 if objective.maximize else 1.0
        self._summarizer = Summarizer(
            whole,
            loss_fn,
            partition or grouping.partition,
            forward=forward,
            third=third,
            curvature=objective.matrix,
            diagonal=diagonal,
            engine=objective.engine,
            max_memory=objective.max_memory,
        )

    def measure(
        self,
        inputs: Any,
        targets: Any,
        directions: Sequence[Sequence[Tensor]],
        decay: Sequence[float],
        seed: int = 0,
    ) -> Measured:
        """The summary along ``directions``, in a single transfer to the host.

        Args:
            inputs, targets: the batch.
            directions: u_1 … u_k, each in the order of the partition's parameters.
            decay: wd of each parameter, 0 for none.
            seed: of the labels that the Fisher matrix draws, in each process others.
        """
        named = {
            name: u
            for names, direction in zip(self._names, directions, strict=True)
            for name, u in zip(names, direction, strict=True)
        }
        summary = self._summarizer.summarize(inputs, targets, named, self._generator(seed))
        gradient_noise, hessian_noise = summary.gradient_noise, summary.hessian_noise
        hessian_noise = hessian_noise if hessian_noise.dim() == 1 else hessian_noise.diagonal()
        gradient, hessian = self.sign * summary.gradient, self.sign * summary.hessian
        third = torch.zeros_like(gradient) if summary.third is None else self.sign * summary.third
        norms = torch.stack([self._grouping.norms(u) for u in directions], 1)
        lengths = norms.flatten()
        if self._shared:
            gradient, hessian, third, gradient_noise, hessian_noise = map(
                self._placed, (gradient, hessian, third, gradient_noise, hessian_noise)
            )
            norms = norms.clone()
            for j in self._shared:
                norms[0, j], norms[1:, j] = torch.linalg.vector_norm(norms[:, j]), 0.0
        if any(decay):
            slope, bend = self._decay(directions, gradient.new_tensor(list(decay)))
            gradient = gradient + slope
            hessian = hessian + (bend.diagonal() if hessian.dim() == 1 else bend)
        curvature = hessian if hessian.dim() == 1 else hessian.diagonal()
        # one of several directions may be at its minimum and still matter through its interactions
        flat = (gradient.abs() <= gradient_noise).view(-1, len(directions))
        own = [j for j in range(len(directions)) if j not in self._shared]
        flat[:, own] = flat[:, own].all(1, keepdim=True)
        flat = flat.flatten()
        straight = (hessian_noise > 0) & (curvature.abs() <= hessian_noise)
        # straight along all groups, as a saturated softmax: not without effect, only without curvature
        linear = (flat | straight).all() & ~flat.all()
        hessian = torch.where(linear, torch.zeros_like(hessian), hessian)
        silent = flat | (straight & ~linear)
        sizes = self._grouping.norms(self._grouping.parameters)
        pieces = [
            *(gradient, hessian.flatten(), third, norms.flatten(), lengths, silent.double()),
            *(sizes, summary.loss.reshape(1)),
        ]
        parts = torch.cat(pieces).cpu().split([piece.numel() for piece in pieces])
        return Measured(
            gradient=parts[0],
            hessian=parts[1].view(hessian.shape),
            third=parts[2],
            norms=parts[3],
            lengths=parts[4],
            silent=parts[5].bool(),
            sizes=parts[6],
            loss=float(parts[7]),
        )

    def objective(self, inputs: Any, targets: Any, parameters: Sequence[Tensor]) -> float:
        """±L of a batch at other parameters, over all processes; the model stays as it is.

        Args:
            inputs, targets: the batch.
            parameters: in the order of the partition.
        """
        inputs, targets = opened((inputs, targets))
        count = batch_size(inputs, targets)
        loss = self._loss(dict(zip(self._grouping.names, parameters, strict=True)), (inputs, targets))
        total, weight = sum_over_processes([loss * count, torch.full_like(loss, count)])
        return self.sign * float(total / weight)

    def _placed(self, numbers: Tensor) -> Tensor:
        """A vector or matrix of a summary with its numbers at their places among the R entries, else zero."""
        size = len(self._grouping.partition) * len(self._names)
        at = self._at
        placed = numbers.new_zeros([size] * numbers.dim())
        placed[(at,) if numbers.dim() == 1 else (at.unsqueeze(1), at)] = numbers
        return placed

    def _generator(self, seed: int) -> torch.Generator | None:
        if self._summarizer.curvature != "fisher":
            return None
        return torch.Generator(self._problem.device()).manual_seed(seed * world_size() + rank())

    def _loss(self, parameters: dict[str, Tensor], batch: Any) -> Tensor:
        """The loss at the current random state, which is restored."""
        with preserve_torch_streams(self._problem.device()), torch.no_grad():
            # the model may write into its inputs
            copies = pytree.tree_map_only(Tensor, torch.clone, (self._problem.constants(), *batch))
            return self._problem.loss(parameters, *copies).double()

    def _decay(self, directions: Sequence[Sequence[Tensor]], factors: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient (R,) and Hessian (R, R) of Σ (wd/2)‖θ_i‖² along the directions."""
        grouping = self._grouping
        slopes = [grouping.dots(grouping.parameters, u, factors) for u in directions]
        blocks = [[grouping.dots(u, v, factors) for v in directions] for u in directions]
        by_group = torch.stack([torch.stack(row) for row in blocks]).permute(2, 0, 1)
        hessian = by_group.flatten().diag() if len(directions) == 1 else torch.block_diag(*by_group)
        gradient = torch.stack(slopes, 1).flatten()
        for j in self._shared:  # the whole stands at the first group
            mine = slice(j, None, len(directions))
            for whole in (gradient, hessian, hessian.T):
                total = whole[mine].sum(0)
                whole[mine] = 0.0
                whole[j] = total
        return gradient, hessian


class Stack(Carrier):
    """θ = θ_1 + θ_2 + … + θ_k, with θ_1 the parameters of ``base`` and the other copies zero.

    A direction that moves copy j by ε_j u_j moves the model by Σ_j ε_j u_j. The summary over a partition
    whose groups are the pairs (group s, copy j) therefore holds the exact derivatives along all P_s u_j.

    Args:
        base: the network; it is not changed.
        copies: k >= 2.
    """

    def __init__(self, base: nn.Module, copies: int) -> None:
        super().__init__(base)
        self._names = [name for name, p in base.named_parameters() if p.requires_grad]
        self._order = {plain_name(base, name): i for i, name in enumerate(self._names)}
        zeros = [p.new_zeros(()).expand(p.shape) for p in base.parameters() if p.requires_grad]
        self.others = nn.ModuleList(
            [nn.ParameterList([nn.Parameter(zero) for zero in zeros]) for _ in range(copies - 1)]
        )

    def forward(self, function: Callable[[nn.Module], Any]) -> Any:
        """The value of ``function`` on the base with the sum of the copies as parameters."""
        values: dict[str, Tensor] = dict(self.base.named_parameters())
        moved = {}
        for i, name in enumerate(self._names):
            total = values[name]
            for other in self.others:
                total = total + other[i]  # type: ignore[index]
            moved[f"base.{name}"] = total
        return functional_call(Carrier(self.base), moved, (function,))

    def name(self, parameter: str, copy: int) -> str:
        """The name, in this model, of a copy of a parameter of the base."""
        return f"base.{parameter}" if copy == 0 else f"others.{copy - 1}.{self._order[parameter]}"

    def partition(
        self, partition: Partition, labels: tuple[str, ...], shared: tuple[int, ...] = ()
    ) -> Partition:
        """The pairs (group, copy), named ``group:label``, with the copies of one group next to each other.

        A copy in ``shared`` is one group, ``all:label``, among those of the first group.
        """
        groups = list(partition)

        def pair(name: str, s: int, j: int) -> Group:
            if j in shared:
                whole = dict.fromkeys(parameter for group in groups for parameter in group.touched)
                copies = tuple(self.name(parameter, j) for parameter in whole)
                return Group(name, copies, sum(group.size for group in groups))
            group = groups[s]
            return Group(
                name,
                tuple(self.name(p, j) for p in group.parameters),
                group.size,
                tuple(replace(part, parameter=self.name(part.parameter, j)) for part in group.slices),
            )

        pairs = numbered(partition, labels, shared).items()
        return Partition(pair(name, *divmod(place, len(labels))) for name, place in pairs)


def numbered(partition: Partition, labels: tuple[str, ...], shared: tuple[int, ...]) -> dict[str, int]:
    """The places of the entries that have a number of their own, by name.

    Of a shared direction that is the entry of the first group, called ``all:label``.
    """
    numbers = {}
    for place, name in enumerate(entries(partition, labels)):
        s, j = divmod(place, len(labels))
        if j not in shared:
            numbers[name] = place
        elif s == 0:
            numbers[f"all:{labels[j]}"] = place
    return numbers


def spread(rates: Tensor, directions: int, shared: tuple[int, ...]) -> Tensor:
    """The rates of all entries, (S·k,), with that of each shared direction, which the first group has, in
    every group.
    """
    by_group = rates.view(-1, directions).clone()
    for j in shared:
        by_group[:, j] = by_group[0, j]
    return by_group.flatten()


def entries(partition: Partition, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the pairs (group, direction); for a single direction those of the groups."""
    if len(labels) == 1:
        return partition.names
    return tuple(f"{name}:{label}" for name in partition.names for label in labels)
