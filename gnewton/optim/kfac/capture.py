"""Hooks that gather K-FAC's statistics, when due, and the rows of gradients while the model runs."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from gnewton.backend import transformed, world_size
from gnewton.errors import InputError, first_line
from gnewton.optim.kfac.kronecker_blocks import Layer, Module, batch_size
from gnewton.optim.kfac.layer_gradient import LowRankGradient
from gnewton.optim.kfac.likelihoods import Sampler
from gnewton.optim.kfac.statistics import Basis, Sums

log = logging.getLogger(__name__)

ROUNDING = 64
"""Roundings by which a gradient may differ from the product of its rows."""

_PLAIN_PRODUCTS = {"AddmmBackward0": (0, 2), "MmBackward0": (None, 1)}
"""Autograd nodes of a linear layer on a matrix, with the positions of the gradients of bias and weight."""


@dataclass
class _Pass:
    """A forward pass of the model while statistics are due.

    Attributes:
        training: whether the model was in training mode.
        samples, counted: its samples, and whether they are counted.
        waiting: the vectors propagated to its calls, until a backward pass shows that it is trained.
    """

    training: bool = False
    samples: int = 0
    counted: bool = False
    waiting: list[tuple[_Call, Tensor]] = field(default_factory=list)


@dataclass
class _Call:
    """A call of a layer, in such a pass or (``owner`` None) in none; done once its gradient has come."""

    layer: Layer
    module: Module
    inputs: Tensor
    owner: _Pass | None
    edge: Any = None
    done: bool = False


@dataclass
class _Rows:
    """The rows of a linear layer's gradient, and the tensors that autograd made from them."""

    inputs: Tensor
    outputs: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None


class Capture:
    """Watches the forward and backward passes of a model in training mode with gradients enabled.

    Passes that replace the parameters by other tensors (``torch.func.functional_call``) are ignored, and so
    are those within a transform of ``torch.func``.

    Args:
        model: the network; its outputs are one tensor with the samples along the first axis.
        layers: the layers to watch.
        sampler: draws the vectors that are propagated back for the true Fisher; None: the empirical Fisher,
            from the gradients of the actual backward pass.
        generator: returns the generator for the next draw, on the device of its argument.
        lenient: whether to take the passes that are trained, those that a backward pass follows, and to make
            do with what there is: passes in evaluation mode and calls of a layer outside of any pass, if no
            pass in training mode and none that reached the layer fed the statistics the last time that they
            were due; and the empirical Fisher from the first pass on in which vectors cannot be propagated.

    Attributes:
        lenient: as above.
        due: whether the next passes feed the statistics.
        samples: number of samples since :meth:`clear`.
        sums: the statistics of each layer since then.
        drawn: the layers among them whose statistics are those of propagated vectors, not of the gradients of
            the actual loss, a mean over the samples.
        bases: the basis in which the gradients of each layer are squared.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        sampler: Sampler | None,
        generator: Callable[[torch.device], torch.Generator],
        *,
        lenient: bool = False,
    ) -> None:
        self.due = True
        self.samples = 0
        self.sums: dict[Layer, Sums] = {}
        self.drawn: set[Layer] = set()
        self.bases: Mapping[Layer, Basis | None] = {}
        self._sampler = sampler
        self._generator = generator
        self.lenient = lenient
        self._trained = self._trains = False  # whether passes in training mode fed the last sums; these sums
        self._reached: set[Layer] = set()  # by passes of the whole model, for the last sums
        self._reaches: set[Layer] = set()  # for these
        self._passed = 0  # samples of passes since clear()
        self._apart: dict[Layer, int] = {}  # of calls outside of any pass
        self._layer_of = {module: layer for layer in layers for module in layer.modules}
        self._depth = 0  # a model may call itself
        self._drawing = False
        self._open = False
        self._pass = _Pass()
        self._calls: list[_Call] = []
        self._rows: dict[Layer, _Rows] = {}
        handles = [model.register_forward_pre_hook(_Hook(self._on_start))]
        handles += [
            module.register_forward_hook(_Hook(self._on_layer), with_kwargs=True) for module in self._layer_of
        ]
        end = _Hook(self._on_end)
        handles.append(  # after that of a lone layer; also where the pass fails
            model.register_forward_hook(end, with_kwargs=True, always_call=True)
        )
        self._finalizer = weakref.finalize(self, _remove, handles)
        self._finalizer.atexit = False

    def close(self) -> None:
        """Remove the hooks from the model."""
        self._finalizer()

    def clear(self) -> None:
        """Discard all statistics and rows."""
        if self.due:
            self._trained, self._reached = self._trains, self._reaches
        self._discard_sums()
        self._rows.clear()

    def forget_gradients(self) -> None:
        """Discard the statistics of gradients that are discarded."""
        if self._sampler is None:
            self._discard_sums()

    def _discard_sums(self) -> None:
        self.samples = self._passed = 0
        self.sums = {}
        self.drawn = set()
        self._apart = {}
        self._trains, self._reaches = False, set()

    def low_rank(self, layer: Layer, weight: Tensor, bias: Tensor | None) -> LowRankGradient | None:
        """The gradient of a layer by its rows, if autograd made ``weight`` and ``bias`` from these very rows.

        That is the case if they are the tensors of the backward pass and have not been written to, which
        excludes a penalty in the loss and accumulated, clipped or replaced gradients. Torch does not count
        all writes (``.grad.data``, ``.numpy()``, an all-reduce by another library): on the CPU the product
        with a random vector shows them, elsewhere that would make the host wait. With several processes the
        rows are never used, and elsewhere than on the CPU not by a lenient capture.
        """
        kept = self._rows.get(layer) if world_size() == 1 else None
        if kept is None or kept.outputs is None or kept.weight is None:
            return None
        same = _same(weight, kept.weight)
        if layer.bias is not None:
            same &= bias is not None and kept.bias is not None and _same(bias, kept.bias)
        if not same:
            return None
        if weight.device.type == "cpu" and not _are_rows_of(kept, weight, bias):
            return None
        dtype = torch.promote_types(kept.inputs.dtype, torch.float32)  # that of the factors
        return LowRankGradient(kept.inputs.to(dtype), kept.outputs.to(dtype), layer.bias is not None)

    def _on_start(self, model: nn.Module, args: Any) -> None:
        self._depth += 1
        if self._depth > 1:
            return
        counts = model.training or (self.lenient and not (self._trained or self._trains))
        self._open = counts and torch.is_grad_enabled() and not transformed() and not self._drawing
        self._pass = _Pass(model.training)
        self._calls = []

    def _on_layer(self, module: Any, args: Any, kwargs: dict[str, Any], output: Tensor) -> None:
        layer = self._layer_of[module]
        if not (self._open or self._takes_apart(layer)) or not output.requires_grad:
            return
        if module._parameters.get("weight") is not layer.weight:
            return
        inputs = (args[0] if args else kwargs["input"]).detach()
        self._watch_rows(layer, inputs, output)
        if self.due:
            call = _Call(layer, module, inputs, self._pass if self._open else None)
            if self._sampler is None or not self._open:
                output.register_hook(partial(self._on_gradient, call))
            else:
                call.edge = get_gradient_edge(output)  # now: an in-place activation would change output
            if self._open:
                self._calls.append(call)

    def _takes_apart(self, layer: Layer) -> bool:
        """Whether a call of a layer outside of any pass counts."""
        reached = layer in self._reached or layer in self._reaches
        return self.lenient and not reached and torch.is_grad_enabled() and not transformed()

    def _on_end(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        self._open = False
        calls, self._calls = self._calls, []
        if not calls or output is None:
            return
        if self._sampler is not None:
            try:
                self._draw(self._sampler, output, calls)
            except Exception as error:  # of the network: a checkpoint or an operation without such a pass
                if not self.lenient:
                    raise
                log.info(
                    "K-FAC takes the gradients of the loss, no drawn labels: %s",
                    first_line(error, with_type=True),
                )
                self._sampler = None
                for call in calls:
                    call.edge.node.register_prehook(partial(self._on_node, call))
        if self._sampler is None:
            self._pass.samples = _samples((output, args, kwargs))

    def _draw(self, draw: Sampler, output: Any, calls: Sequence[_Call]) -> None:
        if not isinstance(output, Tensor) or output.dim() == 0:
            raise InputError(
                "model: KFAC with fisher=true needs a model that returns one tensor, samples along its first "
                "axis; fisher=empirical takes any"
            )
        if output.requires_grad:
            self._pass.samples = len(output)
            self._drawing = True
            try:
                self._propagate(draw, output, calls)
            finally:
                self._drawing = False

    @torch.no_grad()
    def _propagate(self, draw: Sampler, output: Tensor, calls: Sequence[_Call]) -> None:
        """Propagate drawn vectors back through the graph of the forward pass, which stays for the loss.

        A lenient capture counts them once the loss is propagated back through the same graph; if that is
        dropped, so are they.
        """
        values = output.detach()
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        delta = draw(values, self._generator(output.device)).to(output.dtype)
        gradients = torch.autograd.grad(
            output, [call.edge for call in calls], delta, retain_graph=True, allow_unused=True
        )
        for call, gradient in zip(calls, gradients, strict=True):
            edge, call.edge = call.edge, None  # the graph must not hold itself
            if gradient is None:
                continue
            if self.lenient:
                self._pass.waiting.append((call, gradient))
                edge.node.register_prehook(partial(self._on_use, self._pass))
            else:
                self._add(call, gradient, drawn=True)

    @torch.no_grad()
    def _on_use(self, owner: _Pass, _: Any) -> None:
        """Take in the propagated vectors of a pass that is trained."""
        waiting, owner.waiting = owner.waiting, []
        for call, gradient in waiting:
            self._add(call, gradient, drawn=True)

    def _on_gradient(self, call: _Call, gradient: Tensor) -> None:
        """Take in the gradient of the actual loss at the outputs of a layer; only the first one counts.

        One that is itself to be differentiated belongs to a loss that is made of gradients, and comes before
        that of the loss.
        """
        if not call.done and not torch.is_grad_enabled():
            self._add(call, gradient.detach())

    def _on_node(self, call: _Call, gradients: Sequence[Tensor | None]) -> None:
        """The same, of a call whose outputs are known by their place in the graph alone."""
        gradient = gradients[call.edge.output_nr]
        if gradient is not None:
            self._on_gradient(call, gradient)

    @torch.no_grad()
    def _add(self, call: _Call, gradient: Tensor, *, drawn: bool = False) -> None:
        if gradient.numel() == 0:  # of a layer that has no sample to work on, such as an expert
            return
        layer, samples = call.layer, self._count(call)
        if layer not in self.sums or (layer in self.drawn) != drawn:  # the two kinds are not mixed
            self.sums[layer] = Sums(layer, self.bases.get(layer))
            self.drawn = self.drawn | {layer} if drawn else self.drawn - {layer}
        self.sums[layer].add(call.module, call.inputs, gradient, samples)
        call.done = True

    def _count(self, call: _Call) -> int:
        """Count the samples of a call, once a pass; those of calls outside of any pass by layer."""
        owner = call.owner
        if owner is None:
            samples = batch_size(call.module, call.inputs)
            self._apart[call.layer] = self._apart.get(call.layer, 0) + samples
        else:
            samples = owner.samples
            self._trains |= owner.training
            self._reaches.add(call.layer)
            if not owner.counted:
                self._passed += samples
                owner.counted = True
        self.samples = max(self._passed, *self._apart.values(), 0)
        return samples

    def _watch_rows(self, layer: Layer, inputs: Tensor, output: Tensor) -> None:
        """Keep the rows of the gradient of a linear layer, if they are few."""
        self._rows.pop(layer, None)
        places = _PLAIN_PRODUCTS.get(type(output.grad_fn).__name__)
        kinds = {inputs.dtype, output.dtype, layer.weight.dtype}
        if (
            inputs.dim() == 2
            and (inputs.device.type == "cpu" or not self.lenient)
            and len(kinds) == 1  # under autocast a scaler divides the gradients unnoticed
            and places is not None
            and LowRankGradient.pays(len(inputs), layer.inputs, layer.outputs)
        ):
            kept = self._rows[layer] = _Rows(inputs)
            output.grad_fn.register_hook(partial(_keep_rows, kept, places))  # type: ignore[union-attr]


def _remove(handles: Sequence[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


def _samples(values: Any) -> int:
    """The length of the first tensor with axes in what the model returned and took."""
    for leaf in tree_leaves(values):
        if isinstance(leaf, Tensor) and leaf.dim() > 0:
            return len(leaf)
    return 1


def _keep_rows(kept: _Rows, places: tuple[int | None, int], outgoing: Any, incoming: Any) -> None:
    bias, weight = places
    kept.outputs = incoming[0].detach()
    # aliases: if the tensors themselves were held here, autograd would copy them into .grad
    kept.weight = _alias(outgoing[weight])
    kept.bias = None if bias is None else _alias(outgoing[bias])


def _alias(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.detach()


def _same(gradient: Tensor, product: Tensor) -> bool:
    """Whether both are the same memory, written only by the product that made it."""
    return gradient.data_ptr() == product.data_ptr() and gradient._version == product._version == 0


@cache
def _probe(size: int, dtype: torch.dtype) -> Tensor:
    """Normal numbers, the same for every layer of this size."""
    return torch.randn(size, generator=torch.Generator().manual_seed(0)).to(dtype)


def _are_rows_of(rows: _Rows, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the gradients are products of the rows up to rounding, seen by a random vector."""
    assert rows.outputs is not None
    inputs, outputs = rows.inputs, rows.outputs
    probe = _probe(inputs.shape[1], inputs.dtype)
    image = inputs @ probe
    error, size = [weight @ probe - outputs.T @ image], [image.norm()]
    if bias is not None:
        error.append(bias - outputs.sum(0))
        size.append(image.new_tensor(float(len(outputs))).sqrt())
    bounds = [ROUNDING * torch.finfo(inputs.dtype).eps * outputs.norm() * length for length in size]
    return all(bool(e.norm() <= bound) for e, bound in zip(error, bounds, strict=True))


class _Hook:
    """A hook that does not keep its owner alive, and is empty in copies and pickles of the model."""

    def __init__(self, method: Callable[..., None] | None = None) -> None:
        self._method = weakref.WeakMethod(method) if method is not None else None

    def __call__(self, *args: Any) -> None:
        method = self._method() if self._method is not None else None
        if method is not None:
            method(*args)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()
