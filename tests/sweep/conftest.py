"""Sweeps whose runs are stand-ins with a chosen behaviour, started in this process or in their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

STAND_IN = Path(__file__).parent / "stand_in"


def with_stand_in(path: str | None) -> str:
    """PYTHONPATH with the folder of sitecustomize.py in front."""
    return os.pathsep.join([str(STAND_IN), *([path] if path else [])])


@pytest.fixture
def behave(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """behave({seed: behaviour}): what the runs of this test do from now on, see the stand-in."""
    monkeypatch.setenv("PYTHONPATH", with_stand_in(os.environ.get("PYTHONPATH")))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def told(behaviours: dict[int, str] | None = None) -> None:
        monkeypatch.setenv("GNEWTON_STAND_IN", json.dumps(behaviours or {}))

    told()
    return told


class Sweeps:
    """The files that the sweeps in a folder wrote."""

    def __init__(self, folder: Path) -> None:
        self.here = folder

    @property
    def folder(self) -> Path:
        """The only sweep."""
        (only,) = (self.here / "outputs" / "sweeps").iterdir()
        return only

    def manifest(self) -> pd.DataFrame:
        """manifest.csv by job number."""
        return pd.read_csv(self.folder / "manifest.csv", index_col="job", keep_default_na=False)

    def statuses(self) -> list[str]:
        """By job number."""
        return self.manifest()["status"].tolist()

    def starts(self) -> list[dict]:
        """One entry for each time a stand-in was started."""
        path = self.here / "starts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def wait_for_starts(self, count: int) -> list[dict]:
        """Wait until so many stand-ins have started."""
        return until(lambda: len(starts := self.starts()) >= count and starts)

    def go(self) -> None:
        """Let the waiting stand-ins finish."""
        (self.here / "go").touch()


def until(condition: Callable, seconds: float = 60):
    """The first true value of ``condition``; an error if none comes in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


@pytest.fixture
def sweeps(tmp_path: Path, behave: Callable[..., None]) -> Sweeps:
    """The sweeps of this test, with stand-ins for runs."""
    return Sweeps(tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen]]:
    """start(arguments) -> `gnewton ARGUMENTS` as a process of its own group; killed after the test."""
    started: list[subprocess.Popen] = []

    def begin(*arguments: str) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-m", "gnewton", *arguments],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
    for entry in Sweeps(tmp_path).starts():  # those that outlived their sweep keep its pipes open
        with suppress(OSError):
            if str(tmp_path).encode() in Path(f"/proc/{entry['pid']}/cmdline").read_bytes():
                os.kill(entry["pid"], signal.SIGKILL)
    for process in started:
        process.communicate(timeout=60)
