"""How long a command takes to its first line and its first step, and where that time goes.

Run by ``trainer.py --start``. Each command runs in a process of its own, ``watched_start.py``.

*Warm*: after a call that nobody timed. *Cold*: after the kernel was asked to drop the files of the
installation from its cache, which it does for those that no other process has mapped. *First*: warm, but
without the bytecode that Python keeps.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

COMMANDS = {
    "import torch, torchvision": None,
    "digits": "train optimizer=sgd",
    "digits, grouped_newton": "train",
    "mnist": "train model=mlp data=mnist optimizer=sgd",
    "cifar10": "train model=lenet data=cifar10 optimizer=sgd",
}
STATES = ("warm", "cold", "first")
ROOT = Path(__file__).resolve().parents[2]

WATCHED = Path(__file__).with_name("watched_start.py")


def start_table(repeats: int) -> list[dict[str, object]]:
    """A row for each command and state: seconds to the first line and step, and those of each section."""
    rows: list[dict[str, object]] = []
    sections: dict[str, None] = {}
    for state in STATES:
        for name, command in COMMANDS.items():
            calls = [_timed(command, state) for _ in range(repeats + (state == "warm"))]
            timed = [row for row in calls if row is not None]
            if not timed:
                print(f"{name}: left out, it does not run here")
                continue
            row = min(timed, key=lambda row: float(str(row["first step, s"])))
            sections |= dict.fromkeys(row)
            rows.append({"command": name, "state": state, **row})
    return [{key: row.get(key, "") for key in ("command", "state", *sections)} for row in rows]


def _timed(command: str | None, state: str) -> dict[str, object] | None:
    """One call in a new process; None if it ends with an error."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        if state == "first":
            environment |= {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        if state == "cold":
            _forget_files()
        report = Path(folder) / "report.json"
        arguments = [sys.executable, str(WATCHED), str(report)]
        if command is not None:
            arguments += [*command.split(), "trainer.max_steps=1", "trainer.progress=lines"]
            arguments += [f"output_root={folder}/out"]
        start = time.time()
        child = subprocess.Popen(
            arguments, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert child.stdout is not None
        first = child.stdout.read(1)
        line = time.time() - start
        said = child.stdout.read()
        if child.wait() or not report.exists():
            print((first + said).decode()[-500:])
            return None
        found = json.loads(report.read_text())
    if found["code"]:
        print((first + said).decode()[-500:])
        return None
    wall, cpu = found["stamps"]["step"]
    row: dict[str, object] = {
        "first line, s": line if command is not None else "",
        "first step, s": wall - start,
        "first step, processor s": cpu,
    }
    return row | {f"{name}, processor s": cpu for name, (_, cpu) in sorted(found["spent"].items())}


def _forget_files() -> None:
    """Ask the kernel to drop the files of Python, its packages and this project from its cache."""
    places = {sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")}
    for file in _files([*map(Path, places), ROOT / "gnewton", ROOT / "configs", ROOT / "data"]):
        try:
            descriptor = os.open(file, os.O_RDONLY)
        except OSError:
            continue
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _files(places: list[Path]) -> Iterator[Path]:
    for place in places:
        for folder, _, names in os.walk(place):
            yield from (Path(folder) / name for name in names)
