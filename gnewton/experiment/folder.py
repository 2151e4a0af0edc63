"""The folder of a run: made atomically, never shared, with everything needed to know what was run."""

from __future__ import annotations

import hashlib
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gnewton.errors import InputError


def config_hash(config: DictConfig) -> str:
    """Eight hexadecimal digits that change with any option but the place of the outputs."""
    resolved: Any = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    resolved.pop("output_root", None)
    return hashlib.sha256(json.dumps(resolved, sort_keys=True).encode()).hexdigest()[:8]


def create_run_folder(root: Path, digest: str) -> Path:
    """Create ``root/<timestamp with microseconds>_<digest>`` as a new, empty folder.

    ``mkdir`` either creates it or fails, so two runs that start in the same microsecond never share one.

    Raises:
        InputError: if ``root`` cannot be written.
    """
    try:
        root.mkdir(parents=True, exist_ok=True)
        while True:
            folder = root / f"{datetime.now():%Y%m%d-%H%M%S-%f}_{digest}"
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise InputError(f"output_root: {root} cannot be written ({error.strerror})") from error


def write_text(path: Path, text: str) -> None:
    """Write a small file atomically."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a dictionary as indented JSON, atomically."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
