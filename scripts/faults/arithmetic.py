"""Numbers that are not finite, and memory that runs out, at random steps of training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scripts.faults.forks import Count, fork, put, small
from scripts.faults.logs import broken, contents, run_folder

OPTIMIZERS = ("grouped_newton", "sgd", "adam", "kfac", "lbfgs")
POLICIES = ("stop", "skip", "rollback")
PLACES = ("loss", "gradient", "summary")
EPOCHS = 6


def not_finite(count: int, place: Path, seed: int) -> Count:
    """NaN or infinity in the loss, a gradient or a summary at a random step, under each policy."""
    total, draw = Count(), random.Random(seed)
    for number in range(count):
        root = place / f"{number}"
        policy, optimizer = POLICIES[number % 3], OPTIMIZERS[number // 3 % len(OPTIMIZERS)]
        where = draw.choice(PLACES if optimizer == "grouped_newton" else PLACES[:2])
        steps = EPOCHS * (1 if optimizer == "lbfgs" else 3)
        step, value = draw.randrange(steps), draw.choice((math.nan, math.inf, -math.inf))
        ended = fork(
            [
                *(*small(optimizer), f"trainer.epochs={EPOCHS}", "trainer.log_every=2", "output_root=out"),
                f"trainer.on_nonfinite={policy}",
            ],
            root,
            before=partial(_poison, where, step, value, once=policy == "rollback"),
        )
        folder = run_folder(root / "out")
        wrong = (
            "no run folder" if folder is None else broken(folder, resumed=True) or _not_finite_on_disk(folder)
        )
        expected = 3 if policy == "stop" else 0
        if ended.code != expected or not ended.clear:
            wrong = f"exit code {ended.code}: {ended.err}"
        elif folder is not None:
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            met = result["message"] if policy == "stop" else result["skipped"] + result["rollbacks"] == 1
            wrong = wrong or (None if met else f"not noticed: {result}")
        total.add(wrong is None, f"{value} in the {where} of {optimizer} at step {step}, {policy}: {wrong}")
    return total


def _poison(where: str, step: int, value: float, *, once: bool) -> None:
    """Spoil a training step, always or only the first time, or the first summary from that step on."""
    import dataclasses

    import torch

    from gnewton.summary import Summarizer
    from gnewton.training import trainer, training_step
    from gnewton.training.training_step import add_gradient

    now, left = [0], [where]
    make_step, summarize = trainer.Trainer._make_step, Summarizer.summarize

    def noted(self: Any, whole: Any) -> None:
        now[0] = self.state.step
        make_step(self, whole)

    def gradient(model: Any, *arguments: Any) -> Any:
        loss, correct = add_gradient(model, *arguments)
        if now[0] == step and left != ["summary"] and left:
            first = next(p for p in model.parameters() if p.grad is not None)
            first.grad.view(-1)[-1] = value
            if left[0] == "loss":
                loss = torch.full_like(loss, value)
            if once:
                left.clear()
        return loss, correct

    def spoilt(self: Any, *arguments: Any) -> Any:
        summary = summarize(self, *arguments)
        if left == ["summary"] and now[0] >= min(step, 3 * EPOCHS - 2):
            left.clear()
            return dataclasses.replace(summary, hessian=summary.hessian * value)
        return summary

    put(trainer.Trainer, _make_step=noted)
    put(training_step, add_gradient=gradient)
    put(Summarizer, summarize=spoilt)


def _not_finite_on_disk(folder: Path) -> str | None:
    from gnewton.training.checkpoint import load_checkpoint

    for path in sorted((folder / "checkpoint").iterdir()):
        if not all(bool(value.isfinite().all()) for value in load_checkpoint(path)["model"].values()):
            return f"{path.name} holds a number that is not finite"
    return None


def exhausted(count: int, place: Path, seed: int) -> Count:
    """Out of memory in the summary (the run splits the batch) or in a training step (the run stops)."""
    total, draw = Count(), random.Random(seed)
    arguments = [*small(), "trainer.epochs=3", "trainer.log_every=2"]
    fork([*arguments, f"output_root={place / 'whole'}"], place)
    whole = run_folder(place / "whole")
    assert whole is not None
    for number in range(count):
        root, in_summary = place / f"{number}", number % 2 == 0
        spoil: Callable[[], None] = (
            _narrow(draw.randrange(1, 20)) if in_summary else _no_memory(draw.randrange(9))
        )
        ended = fork([*arguments, "output_root=out"], root, before=spoil)
        folder = run_folder(root / "out")
        wrong = "no run folder" if folder is None else broken(folder, resumed=True)
        if ended.code != (0 if in_summary else 1) or not ended.clear:
            wrong = f"exit code {ended.code}: {ended.err}"
        elif in_summary and "summary: out of memory; from here on" not in ended.err:
            wrong = f"no line in the log: {ended.err}"
        elif not in_summary and "lower trainer.microbatch" not in ended.err:
            wrong = f"no option named: {ended.err}"
        if wrong is None and not in_summary:
            again = fork([f"resume={folder}"], root)
            assert folder is not None
            wrong = again.err if again.code or contents(folder) != contents(whole) else None
        total.add(wrong is None, f"{'summary' if in_summary else 'training'}: {wrong}")
    return total


def _narrow(largest: int) -> Callable[[], None]:
    """Passes over more samples than ``largest`` run out of memory."""

    def spoil() -> None:
        import torch

        from gnewton.summary.tangent.engine import TangentEngine

        run = TangentEngine._passes

        def narrow(self: Any, trace: Any, request: Any, *others: Any) -> Any:
            if request.batch_size > largest:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return run(self, trace, request, *others)

        put(TangentEngine, _passes=narrow)

    return spoil


def _no_memory(step: int) -> Callable[[], None]:
    """The gradient of a training step runs out of memory."""

    def spoil() -> None:
        import torch

        from gnewton.training import training_step
        from gnewton.training.training_step import add_gradient

        calls = [0]

        def fail(*arguments: Any) -> Any:
            calls[0] += 1
            if calls[0] == step + 1:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return add_gradient(*arguments)

        put(training_step, add_gradient=fail)

    return spoil
