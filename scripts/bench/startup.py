"""How long a command takes to its first line and its first step, and where that time goes.

Run by ``trainer.py --start``. Each command runs in a process of its own. Modules are watched as they are
imported and functions as they are called; a section does not contain those inside it.

*Warm*: after a call that nobody timed. *Cold*: after the kernel was asked to drop the files of the
installation from its cache, which it does for those that no other process has mapped. *First*: warm, but
without the bytecode that Python keeps.
"""

from __future__ import annotations

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

WATCHER = '''
import importlib.abc, importlib.machinery, json, os, sys, time
WANTED = {"torch", "torchvision", "hydra", "omegaconf", "numpy", "scipy", "sklearn", "pandas", "matplotlib"}
CALLS = {
    "gnewton.experiment.prepare": {"prepare": "checking options"},
    "gnewton.cli.composer": {"run_jobs": "composing"},
    "gnewton.experiment.run": {"build_parts": "data and model", "describe_environment": "environment"},
    "gnewton.training.evaluate": {"Evaluator.scores": "evaluation", "Evaluator.start_loss": "evaluation"},
    "gnewton.training.saving": {"Saver.save": "checkpoint"},
    "gnewton.training.trainer": {"Trainer._make_step": "step"},
}
spent, stack, stamps = {}, [], {}
def enter(name):
    stack.append([name, time.perf_counter(), time.process_time(), 0.0, 0.0])
def leave():
    name, wall, cpu, inner_wall, inner_cpu = stack.pop()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    before = spent.get(name, (0.0, 0.0))
    spent[name] = (before[0] + wall - inner_wall, before[1] + cpu - inner_cpu)
    if stack:
        stack[-1][3] += wall
        stack[-1][4] += cpu
def watched(function, name):
    def call(*args, **kwargs):
        enter(name)
        try:
            return function(*args, **kwargs)
        finally:
            leave()
            if name == "step" and "step" not in stamps:
                stamps["step"] = (time.time(), time.process_time())
    return call
def put(module, path, name):
    *owners, last = path.split(".")
    for owner in owners:
        module = getattr(module, owner)
    setattr(module, last, watched(getattr(module, last), name))
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in WANTED and name not in CALLS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module
        def exec_module(module):
            if name in WANTED:
                enter("import " + name)
            try:
                execute(module)
            finally:
                if name in WANTED:
                    leave()
            for path, label in CALLS.get(name, {}).items():
                put(module, path, label)
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
enter("other modules and the rest")
code = 0
if len(sys.argv) > 2:
    from gnewton.cli.main import main
    code = main(sys.argv[2:])
else:
    import torch, torchvision
    stamps["step"] = (time.time(), time.process_time())
leave()
with open(sys.argv[1], "w") as file:
    json.dump({"stamps": stamps, "spent": spent, "code": code}, file)
'''


def start_table(repeats: int) -> list[dict[str, object]]:
    """A row for each command and state: seconds to the first line and step, and those of each section."""
    rows: list[dict[str, object]] = []
    sections: dict[str, None] = {}
    for state in STATES:
        for name, command in COMMANDS.items():
            timed = [_timed(command, state) for _ in range(repeats + (state == "warm"))]
            timed = [row for row in timed if row is not None]
            if not timed:
                print(f"{name}: left out, it does not run here")
                continue
            row = min(timed, key=lambda row: float(row["first step, s"]))  # type: ignore[arg-type]
            sections |= dict.fromkeys(row)
            rows.append({"command": name, "state": state, **row})
    return [{key: row.get(key, "") for key in ("command", "state", *sections)} for row in rows]


def _timed(command: str | None, state: str) -> dict[str, object] | None:
    """One call in a new process; None if it ends with an error."""
    import json

    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        if state == "first":
            environment |= {"PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
        if state == "cold":
            _forget_files()
        report = Path(folder) / "report.json"
        arguments = [sys.executable, "-c", WATCHER, str(report)]
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
    return row | {name: seconds for name, (seconds, _) in sorted(found["spent"].items())}


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


def _files(places: list[Path]) -> Iterator[str]:
    for place in places:
        for folder, _, names in os.walk(place):
            yield from (os.path.join(folder, name) for name in names)
