"""Reference runs that several tests share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from omegaconf import DictConfig


@pytest.fixture(scope="session")
def finished(
    compose: Callable[..., DictConfig], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Sequence[str]], Path]:
    """finished(overrides) -> the folder of the run of these overrides; made once, so it must not be changed.

    Request it before anything is patched.
    """
    from gnewton.experiment.prepare import prepare
    from gnewton.experiment.run import run

    folders: dict[tuple[str, ...], Path] = {}

    def run_once(overrides: Sequence[str]) -> Path:
        key = tuple(overrides)
        if key not in folders:
            root = tmp_path_factory.mktemp("finished")
            changes = [f"output_root={root}", "trainer.device=cpu", *key]
            folder = run(prepare(compose(changes), changes)).folder
            assert folder is not None
            folders[key] = folder
        return folders[key]

    return run_once
