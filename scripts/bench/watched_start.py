"""A command of gnewton in this process, watched for ``startup.py``: ``watched_start.py REPORT [ARGUMENTS]``.

Writes to REPORT when the first step was made and how long imports and functions took, without those
inside them. Without arguments it imports torch and torchvision alone.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMPORTS = {
    "torch", "torch._dynamo", "torchvision", "hydra", "omegaconf", "numpy", "scipy", "sklearn", "pandas",
    "matplotlib",
}  # fmt: skip
CALLS = {
    "gnewton.experiment.prepare": {"prepare": "checking options"},
    "gnewton.experiment.run": {"build_parts": "data and model", "describe_environment": "environment"},
    "gnewton.training.evaluate": {"Evaluator.scores": "evaluation", "Evaluator.start_loss": "evaluation"},
    "gnewton.training.saving": {"Saver.save": "checkpoint"},
    "gnewton.training.trainer": {"Trainer._make_step": "step"},
}
spent: dict[str, tuple[float, float]] = {}
stack: list[list[float]] = []
stamps: dict[str, tuple[float, float]] = {}


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@contextmanager
def section(name: str) -> Iterator[None]:
    """Add the time of a block to ``spent``, without that of the sections inside it."""
    start = now()
    stack.append([0.0, 0.0])
    try:
        yield
    finally:
        took = [b - a for a, b in zip(start, now(), strict=True)]
        inner, before = stack.pop(), spent.get(name, (0.0, 0.0))
        spent[name] = (before[0] + took[0] - inner[0], before[1] + took[1] - inner[1])
        if stack:
            stack[-1] = [a + b for a, b in zip(stack[-1], took, strict=True)]


def first_step() -> None:
    stamps.setdefault("step", (time.time(), time.process_time()))


def watched(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with section(name):
            result = function(*args, **kwargs)
        if name == "step":
            first_step()
        return result

    return call


class Finder(importlib.abc.MetaPathFinder):
    """Watches the modules of ``IMPORTS``, and puts watched functions into those of ``CALLS``."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        """The module as Python finds it, with a loader that watches."""
        if name not in IMPORTS and name not in CALLS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            if name in IMPORTS:
                with section(f"import {name}"):
                    execute(module)
            else:
                execute(module)
            for place, label in CALLS.get(name, {}).items():
                *owners, last = place.split(".")
                owner = module
                for part in owners:
                    owner = getattr(owner, part)
                setattr(owner, last, watched(getattr(owner, last), label))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def main() -> None:
    """Run the command and write the report."""
    report, *arguments = sys.argv[1:]
    sys.meta_path.insert(0, Finder())
    code = 0
    with section("other modules and the rest"):
        if arguments:
            from gnewton.cli.main import main as command

            code = command(arguments)
        else:
            import torch  # noqa: F401
            import torchvision  # noqa: F401

            first_step()
    Path(report).write_text(json.dumps({"stamps": stamps, "spent": spent, "code": code}))


if __name__ == "__main__":
    main()
