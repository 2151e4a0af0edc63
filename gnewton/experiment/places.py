"""The files that a configuration names: they may move, since paths are not part of a run's identity.

Files of learning rates are read into the configuration, so that the saved one is complete. Here as well:
where the YAML files lie. Torch-free.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import gnewton
from gnewton.data.dataset_options import DATA
from gnewton.errors import InputError
from gnewton.optim.options.baselines import read_rates
from gnewton.options import Role, declaration, user_path
from gnewton.runfiles import ENVIRONMENT_FILE

OUTPUTS = "output_root"
VARIABLE = "GNEWTON_DATA"
"""Environment variable with the folder of the data sets."""


def places(config: DictConfig) -> list[str]:
    """The full names of the options that hold a path, such as ``data.path``."""

    def visit(node: DictConfig, path: str) -> Iterator[str]:
        kind = OmegaConf.get_type(node)
        entries = fields(kind) if is_dataclass(kind) else ()
        flagged = {entry.name for entry in entries if Role.PLACE in declaration(entry).role}
        for key in node:
            where = f"{path}{key!s}"
            if key in flagged:
                yield where
            child = node._get_node(key)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from visit(child, f"{where}.")

    return list(visit(config, ""))


def absolute(path: str) -> str:
    """The absolute form of a path, in which ``~`` stands for the home folder."""
    return str(user_path(path).absolute())


def with_absolute_places(config: DictConfig) -> DictConfig:
    """The configuration with absolute paths, as a run folder keeps it."""
    config = config.copy()
    for name in places(config):
        OmegaConf.update(config, name, absolute(str(OmegaConf.select(config, name))), merge=False)
    return config


def find_places(config: DictConfig, folder: Path) -> None:
    """Make the paths of a saved configuration absolute, and find files that have moved.

    A relative path is looked up where the run was started, then in the current folder. If a folder of data
    sets is missing, that of ``GNEWTON_DATA`` is used.

    Args:
        config: of the run in ``folder``; changed in place.
        folder: the run folder.
    """
    starts = [*_starts(config, folder), Path.cwd()]
    for name in places(config):
        path = user_path(str(OmegaConf.select(config, name)))
        if name == OUTPUTS:
            path = _outputs(path, folder)
        elif not path.is_absolute():
            candidates = [start / path for start in starts]
            path = next((candidate for candidate in candidates if candidate.exists()), candidates[0])
        if name == "data.root" and not path.exists() and os.environ.get(VARIABLE):
            path = _default_root(str(config.data.name)) or path
        OmegaConf.update(config, name, absolute(str(path)), merge=False)


def require_places(config: DictConfig, argument: str) -> None:
    """Check that the file of a run's data exists, before anything is built.

    Raises:
        InputError: naming the option to give.
    """
    if "data.path" in places(config) and not Path(str(config.data.path)).is_file():
        raise InputError(f"{argument}: its data.path={config.data.path} does not exist; give data.path=FILE")


def _starts(config: DictConfig, folder: Path) -> Iterator[Path]:
    """The folders in which the run in ``folder`` may have been started."""
    yield from _working_directory(folder / ENVIRONMENT_FILE)
    outputs = user_path(str(config.output_root))
    root = folder.absolute().parent.parent
    if (
        not outputs.is_absolute()
        and ".." not in outputs.parts
        and root.parts[-len(outputs.parts) :] == outputs.parts
    ):
        yield root.parents[len(outputs.parts) - 1] if outputs.parts else root
    for parent in root.parents:  # a job of a sweep
        yield from _working_directory(parent / "sweep.json")


def _working_directory(file: Path) -> Iterator[Path]:
    """The working directory that a file records; files of older versions do not."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        yield Path(json.loads(file.read_text(encoding="utf-8"))["directory"])


def _outputs(path: Path, folder: Path) -> Path:
    """The output root of a run: as before, or the folder around the run if that has moved."""
    return path if path.is_absolute() and path.is_dir() else folder.absolute().parent.parent


def _default_root(data: str) -> Path | None:
    """The default folder of a data set under the present environment."""
    try:
        return user_path(str(OmegaConf.structured(DATA[data]).root))
    except (InputError, OmegaConfBaseException):  # a choice of the user's own, or data without a folder
        return None


RATES = "optimizer.rates"


def inlined(config: DictConfig) -> DictConfig:
    """The configuration with the content of a file of learning rates in place of its path.

    Raises:
        InputError: if the file cannot be read.
    """
    path = OmegaConf.select(config, RATES)
    if not isinstance(path, str):
        return config
    try:
        rates = read_rates(user_path(path))
    except InputError as error:
        raise InputError(f"{RATES}={path}: {error}") from error
    config = config.copy()
    OmegaConf.update(config, RATES, rates, merge=False)
    return config


def config_folder() -> Path:
    """Absolute path of the folder with config.yaml.

    A wheel carries it as ``gnewton/configs``; a checkout or an editable install has it beside the package.

    Raises:
        InputError: if neither is there.
    """
    package = Path(gnewton.__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "config.yaml").is_file():
            return folder
    raise InputError(
        f"configs: config.yaml is neither in {package / 'configs'} nor in {package.parent / 'configs'}"
    )
