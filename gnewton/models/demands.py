"""What a network demands of the data, and the message where the data do not offer it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gnewton.errors import InputError

if TYPE_CHECKING:
    from gnewton.tasks import Task


def input_size(name: str, task: Task) -> int:
    """Numbers in one input of ``task``, for the network ``name``.

    Raises:
        InputError: if the task has no inputs.
    """
    if not task.input_shape:
        raise mismatch(name, "inputs of at least one number", task)
    return task.input_size


def image_shape(name: str, task: Task, *, least: int = 1) -> tuple[int, int, int]:
    """(channels, height, width) of the images of ``task``, for the network ``name``.

    Raises:
        InputError: if the inputs are no images, or images of fewer than ``least`` pixels on a side.
    """
    if len(task.input_shape) != 3 or min(task.input_shape[1:]) < least:
        size = f" of at least {least}×{least} pixels" if least > 1 else ""
        raise mismatch(name, f"images (channels, height, width){size}", task)
    channels, height, width = task.input_shape
    return channels, height, width


def mismatch(name: str, needs: str, task: Task) -> InputError:
    """The error of a network ``name`` that needs what the data of ``task`` do not offer."""
    given = f"inputs of shape {task.input_shape}" if task.input_shape else "no inputs"
    return InputError(
        f"model={name}: needs {needs}; data gives {given} (task: {type(task).__name__.lower()})"
    )
