"""The network inside the wrappers of torch, and its parameters by their names in it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from gnewton.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_REFUSED = {
    "DataParallel": "copies the network to several devices at every call",
    "FullyShardedDataParallel": "keeps a part of every parameter in each process",
}


def unwrapped(model: Any) -> nn.Module:
    """The network inside ``torch.compile`` and DistributedDataParallel, or the model itself.

    Raises:
        InputError: for anything but an ``nn.Module``, and for wrappers whose network cannot be used alone.
    """
    _require_module(model)
    while (inner := _inner(model)) is not None:
        model = inner[1]
    name = type(model).__name__
    if name in _REFUSED:
        raise InputError(
            f"model: {name} {_REFUSED[name]}; pass the module inside it, or use DistributedDataParallel"
        )
    _require_shapes(model)
    return model  # type: ignore[no-any-return]


def is_compiled(model: nn.Module) -> bool:
    """Whether the model or a part of it runs through ``torch.compile``."""
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )


def plain_name(model: nn.Module, name: str) -> str:
    """The name of a parameter without the parts of wrappers: ``0.weight`` for ``module.0._orig_mod.weight``.

    Args:
        model: the network, wrapped or not.
        name: a name of ``model.named_parameters()``, or a plain one.
    """
    if "_orig_mod" not in name and "module" not in name:
        return name
    module: nn.Module | None = model
    kept = []
    for part in name.split("."):
        consumed = False
        while module is not None and not consumed and (inner := _inner(module)) is not None:
            consumed, module = part == inner[0], inner[1]
        if not consumed:
            kept.append(part)
            module = module._modules.get(part) if module is not None else None
    return ".".join(kept)


def named_parameters(model: nn.Module, *, duplicates: bool = False) -> dict[str, nn.Parameter]:
    """The parameters of the network by plain name, in its order; tied ones once without ``duplicates``."""
    named = model.named_parameters(remove_duplicate=not duplicates)
    return {plain_name(model, name): p for name, p in named}


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run compiled functions and modules uncompiled: compiled code can be differentiated only once."""
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is None:  # nothing has been compiled
        yield
        return
    import torch

    with dynamo.config.patch(error_on_nested_fx_trace=False), torch.compiler.set_stance("force_eager"):
        yield


def _inner(module: nn.Module) -> tuple[str, nn.Module] | None:
    """The name and the network of a wrapper; None for any other module."""
    compiled = module._modules.get("_orig_mod")
    if compiled is not None:
        return "_orig_mod", compiled
    from torch.nn.parallel import DistributedDataParallel

    return ("module", module.module) if isinstance(module, DistributedDataParallel) else None


def _require_shapes(model: nn.Module) -> None:
    from torch.nn.parameter import is_lazy

    lazy = next((name for name, p in model.named_parameters() if is_lazy(p)), None)
    if lazy is not None:
        raise InputError(f"model: '{lazy}' has no shape yet; call the model with a batch first")


def _require_module(model: Any) -> None:
    from torch import Tensor, nn

    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise InputError(f"model: must be an nn.Module, not its class; pass {model.__name__}(…)")
    parameters = isinstance(model, (list, tuple, dict, Tensor, Iterator))
    kind = "its parameters" if parameters else f"{type(model).__name__}"
    raise InputError(f"model: must be an nn.Module, not {kind}")
