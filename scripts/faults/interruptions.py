"""Runs that are killed or stopped, and damaged checkpoints: the resumed run equals one without a fault."""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

from scripts.faults.forks import Count, Ended, fork, moments, small
from scripts.faults.logs import broken, contents, run_folder

OPTIMIZERS = ("grouped_newton", "sgd", "adam", "kfac", "lbfgs")
LONG = ("trainer.log_every=2", "trainer.epochs=20")
EVERY = ("1 steps", "2 steps", "1 epoch", "0.05 s")
SIGNALS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGUSR1: 143}


def killed(count: int, place: Path, seed: int) -> Count:
    """SIGKILL at random moments, from the start of the process to the end of the run."""
    return _interrupted(count, place, seed, (signal.SIGKILL,))


def signalled(count: int, place: Path, seed: int) -> Count:
    """SIGINT, SIGTERM and SIGUSR1 at random moments; once training has begun, the run ends in good order."""
    return _interrupted(count, place, seed, tuple(SIGNALS))


def _interrupted(count: int, place: Path, seed: int, numbers: tuple[signal.Signals, ...]) -> Count:
    total, draw = Count(), random.Random(seed)
    while total.injected < count:
        optimizer, every = draw.choice(OPTIMIZERS), draw.choice(EVERY)
        root = place / f"{total.injected}"
        arguments = [*small(optimizer), *LONG, f"trainer.checkpoint_every={every}"]
        reference = fork([*arguments, f"output_root={root / 'whole'}"], root)
        whole = run_folder(root / "whole")
        assert whole is not None, reference.err
        label = f"{optimizer}, a checkpoint every {every}"
        for _ in range(40):  # one run, broken off again and again until it has come to its end
            folder = run_folder(root / "broken")
            again = [f"resume={folder}"] if folder else [*arguments, f"output_root={root / 'broken'}"]
            number = draw.choice(numbers)
            last = total.injected >= count
            after = None if last else moments(1, reference.seconds, draw.randrange(2**32))[0]
            ended = fork(again, root, number=number, after=after)
            if ended.code == 0:
                break
            folder = run_folder(root / "broken")
            wrong = _wrong(ended, number) or (broken(folder, resumed=False) if folder else None)
            total.add(wrong is None, f"{label}, {number.name} after {after} s: {wrong}")
        else:
            ended = fork([f"resume={folder}"], root)
        folder = run_folder(root / "broken")
        assert folder is not None
        wrong = f"exit code {ended.code}: {ended.err}" if ended.code else broken(folder, resumed=True)
        if wrong is None and contents(folder) != contents(whole):
            wrong = f"{folder} differs from {whole}"
        if wrong is not None:
            total.survived -= 1
            total.failures.append(f"{label}: {wrong}")
        else:
            shutil.rmtree(root)
    return total


def _wrong(ended: Ended, number: signal.Signals) -> str | None:
    """What is wrong with the end of a command after a signal; None if nothing is."""
    before_training = -number if number != signal.SIGINT else 130
    expected = {-number} if number == signal.SIGKILL else {SIGNALS[number], before_training}
    if ended.code not in expected:
        return f"exit code {ended.code}: {ended.err}"
    return None if "Traceback" not in ended.err else f"a traceback: {ended.err}"


def damaged(count: int, place: Path, seed: int) -> Count:
    """The newest checkpoint cut off or with a bit flipped at a random place: the one before it is used.

    A bit of the padding between its records does no harm; then the newest is still taken.
    """
    total, draw = Count(), random.Random(seed)
    arguments = [*small(), *LONG[:1], "trainer.epochs=3", "trainer.checkpoint_every=2 steps"]
    fork([*arguments, f"output_root={place / 'whole'}"], place)
    fork([*arguments, f"output_root={place / 'stopped'}", "trainer.max_steps=7"], place)
    whole, stopped = run_folder(place / "whole"), run_folder(place / "stopped")
    assert whole is not None
    assert stopped is not None
    unharmed = place / "unharmed"
    shutil.copytree(stopped, unharmed)
    fork([f"resume={unharmed}", "trainer.max_steps=null"], place)
    right = contents(whole), contents(unharmed)
    for number in range(count):
        folder = place / f"{number}" / "broken" / "run"
        shutil.copytree(stopped, folder)
        path = folder / "checkpoint" / "last.pt"
        content = bytearray(path.read_bytes())
        where = draw.randrange(len(content))
        if number % 2:
            content[where] ^= 1 << draw.randrange(8)
        path.write_bytes(content if number % 2 else content[:where])
        ended = fork([f"resume={folder}", "trainer.max_steps=null"], place)
        wrong = ended.err if ended.code else broken(folder, resumed=True)
        what = f"{'a bit turned' if number % 2 else 'cut off'} at byte {where} of {len(content)}"
        if wrong is None and contents(folder) not in right[: 1 + number % 2]:
            wrong = "the run differs"
        total.add(wrong is None, f"{what}: {wrong}")
    return total
