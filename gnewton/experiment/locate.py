"""Finds the YAML files: inside the installed package, else at the top of the checkout."""

from __future__ import annotations

from pathlib import Path

import gnewton
from gnewton.errors import InputError


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
