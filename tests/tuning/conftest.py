"""Searches whose runs are the stand-ins of the sweeps."""

import pytest

from tests.sweep.conftest import behave, start, sweeps

__all__ = ["behave", "search", "start", "sweeps"]


@pytest.fixture
def search(tmp_path):
    """search() -> the folder of the only search."""

    def found():
        (folder,) = (tmp_path / "outputs" / "tune").iterdir()
        return folder

    return found
