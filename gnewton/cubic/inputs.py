"""Inputs of the solver: tensors of any device or arrays, checked and converted to float64, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from gnewton.cubic.solution import Array
from gnewton.errors import InputError

_ASYMMETRY = {torch.float64: 1e-5, torch.float32: 1e-3}
_ASYMMETRY_OF_OTHERS = 0.1


@dataclass(frozen=True)
class Inputs:
    """Checked inputs: ``hessian`` (S, S) symmetric, ``gradient`` (S,), ``third`` (S,), float64.

    Attributes:
        finite: whether every entry is.
        as_tensor: whether the rates are returned as a tensor.
    """

    hessian: np.ndarray
    gradient: np.ndarray
    third: np.ndarray
    damping: float
    finite: bool
    as_tensor: bool

    def answer(self, rates: np.ndarray) -> Array:
        """The rates as a tensor or an array, as the caller passed the Hessian."""
        return torch.from_numpy(rates) if self.as_tensor else rates


def checked(hessian: Array, gradient: Array, third: Array | None, damping: float) -> Inputs:
    """Copy the inputs to the CPU in one transfer and check them.

    Raises:
        InputError: for an empty model, shapes that do not match, a Hessian that is asymmetric beyond the
            rounding of its dtype, or a damping that is negative or not finite.
    """
    if not (isinstance(damping, (int, float)) and math.isfinite(damping) and damping >= 0.0):
        raise InputError(f"damping={damping!r}: must be a finite number >= 0")
    size = _check_shapes(hessian, gradient, third)
    h, g, t = _on_cpu(hessian, gradient, third, size)
    finite = all_finite(h) and all_finite(g) and all_finite(t)
    if finite and not (h == h.T).all():
        h = _symmetrised(h, _asymmetry(hessian))
    return Inputs(h, g, t, float(damping), finite, isinstance(hessian, torch.Tensor))


def _check_shapes(hessian: Array, gradient: Array, third: Array | None) -> int:
    shape = tuple(np.shape(gradient))
    if len(shape) != 1 or shape[0] == 0:
        raise InputError(f"gradient has shape {shape}: must be (S,) with S >= 1")
    size = int(shape[0])
    if np.shape(hessian) != (size, size):
        raise InputError(f"hessian has shape {tuple(np.shape(hessian))}: must be {(size, size)}")
    if third is not None and np.shape(third) != (size,):
        raise InputError(f"third has shape {tuple(np.shape(third))}: must be {(size,)}")
    return size


def _on_cpu(
    hessian: Array, gradient: Array, third: Array | None, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    parts = [hessian, gradient] if third is None else [hessian, gradient, third]
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    if len(tensors) == len(parts) and any(part.device.type != "cpu" for part in tensors):
        flat = torch.cat([part.detach().reshape(-1) for part in tensors]).cpu().to(torch.float64).numpy()
        square = size * size
        h, g = flat[:square].reshape(size, size), flat[square : square + size]
        return h, g, flat[square + size :] if third is not None else np.zeros(size)
    return (
        _as_float64(hessian),
        _as_float64(gradient),
        np.zeros(size) if third is None else _as_float64(third),
    )


def _as_float64(part: Array) -> np.ndarray:
    if isinstance(part, torch.Tensor):
        return part.detach().to("cpu", torch.float64).numpy()
    return np.asarray(part, dtype=np.float64)


def _asymmetry(hessian: Array) -> float:
    """The largest asymmetry that counts as rounding in the dtype of the Hessian."""
    dtype = hessian.dtype if isinstance(hessian, torch.Tensor) else _torch_dtype(np.asarray(hessian))
    return _ASYMMETRY.get(dtype, _ASYMMETRY_OF_OTHERS)


def _torch_dtype(array: np.ndarray) -> torch.dtype:
    return {"float32": torch.float32, "float16": torch.float16}.get(array.dtype.name, torch.float64)


def _symmetrised(hessian: np.ndarray, tolerance: float) -> np.ndarray:
    half = 0.5 * hessian
    skew = np.abs(half - half.T)
    if skew.any():
        row = np.abs(half).max(axis=1)
        if (skew > tolerance * np.maximum(row[:, None], row[None, :])).any():
            s, t = np.unravel_index(int(skew.argmax()), skew.shape)
            raise InputError(
                f"hessian[{s},{t}]={hessian[s, t]:g} and hessian[{t},{s}]={hessian[t, s]:g}: "
                "must be symmetric up to rounding"
            )
    return half + half.T


def all_finite(array: np.ndarray) -> bool:
    """Whether every entry is finite, at the price of a dot product.

    A finite sum of squares settles it in one pass. Entries beyond 1e154 overflow the sum; then each entry is
    examined.
    """
    return math.isfinite(np.vdot(array, array)) or bool(np.isfinite(array).all())
