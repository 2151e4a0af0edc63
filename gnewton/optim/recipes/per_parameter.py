"""A learning rate of its own for some parameters: ``optimizer.rates`` of the first-order optimizers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from gnewton.errors import InputError
from gnewton.options import did_you_mean, listing, show


def read_rates(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        InputError: if the file cannot be read or holds no mapping.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).strip().partition("\n")[0]
        raise InputError(f"the file cannot be read ({reason})") from error
    if not isinstance(found, dict):
        raise InputError("the file holds no mapping from parameters to learning rates")
    return found


def as_mapping(rates: object) -> dict[str, float]:
    """Checked rates by name or expression, from a mapping, a file of one, or None.

    Raises:
        InputError: naming the entry that is wrong.
    """
    if rates is None:
        return {}
    found = read_rates(Path(rates)) if isinstance(rates, str) else rates
    if not isinstance(found, Mapping):
        raise InputError("must be a mapping {NAME: RATE, …} or a YAML file of one")
    checked = {}
    for name, rate in found.items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < float("inf"):
            raise InputError(f"'{name}: {show(rate)}': each rate must be a finite number >= 0")
        try:
            re.compile(str(name))
        except re.error as error:
            raise InputError(f"'{name}' is no name and no regular expression: {error}") from error
        checked[str(name)] = float(rate)
    return checked


def assign(rates: Mapping[str, float], names: Iterable[str]) -> dict[str, float]:
    """The rate of each parameter that has one.

    A key is the name of a parameter, or a regular expression that is searched in the names of those that no
    key names; of several expressions the first counts.

    Raises:
        InputError: for a key that gives no parameter its rate.
    """
    names = list(names)
    assigned = {name: rates[name] for name in names if name in rates}
    used = set(assigned)
    expressions = [key for key in rates if key not in used]
    for name in names:
        if name in assigned:
            continue
        key = next((key for key in expressions if re.search(key, name)), None)
        if key is not None:
            assigned[name] = rates[key]
            used.add(key)
    idle = [key for key in rates if key not in used]
    if idle:
        key = idle[0]
        why = (
            f"every parameter in which it is found belongs to another key: {key!r}"
            if any(re.search(key, name) for name in names)
            else f"'{key}' names no parameter, and is found in the name of none{did_you_mean(key, names)}; "
            f"the model has {listing(names, 6)}"
        )
        raise InputError(f"optimizer.rates: {why}")
    return assigned
