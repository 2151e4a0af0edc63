"""What optimizers add to the state that torch keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gnewton.errors import InputError


def own_part(state_dict: Mapping[str, Any], key: str, owner: str, groups: Sequence[str]) -> dict[str, Any]:
    """The part of a state that is neither torch's nor the inner optimizer's.

    Args:
        state_dict: the whole state.
        key: under which the part is kept there.
        owner: the optimizer that wrote it.
        groups: the names that it must be for, of groups or of groups and directions.

    Raises:
        InputError: if another optimizer wrote the state, or it is for other groups.
    """
    part: dict[str, Any] | None = state_dict.get(key)
    if part is None:
        raise InputError(f"state_dict: it was not written by {owner}")
    if part["groups"] != list(groups):
        raise InputError(f"state_dict: its groups are {part['groups']}, not {list(groups)}")
    return part
