"""Files and command lines that are not what they should be: exit code 2, one message, no run folder."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scripts.faults.forks import Count, Ended, fork, put, within

Arrays = dict[str, Any]


def sound(random_state: np.random.RandomState) -> Arrays:
    """A small set of images, without fault."""
    return {
        "x_train": random_state.randint(0, 256, (40, 6, 6)).astype(np.uint8),
        "y_train": (np.arange(40) % 3).astype(np.int64),
        "x_test": random_state.randint(0, 256, (10, 6, 6)).astype(np.uint8),
        "y_test": (np.arange(10) % 3).astype(np.int64),
    }


def _with(**changes: Any) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, **{key: change(arrays[key]) for key, change in changes.items()}}


HOSTILE: dict[str, Callable[[Arrays], Arrays]] = {
    "pixels of another type": _with(x_train=lambda x: x.astype(np.int32)),
    "complex pixels": _with(
        x_train=lambda x: x.astype(np.complex64), x_test=lambda x: x.astype(np.complex64)
    ),
    "texts for pixels": _with(x_train=lambda x: x.astype(str), x_test=lambda x: x.astype(str)),
    "booleans for pixels": _with(x_train=lambda x: x > 9, x_test=lambda x: x > 9),
    "dates for labels": _with(y_train=lambda y: y.astype("datetime64[s]")),
    "records": _with(x_train=lambda x: np.zeros(40, dtype=[("a", "i4")])),
    "five axes": _with(x_train=lambda x: x[..., None, None], x_test=lambda x: x[..., None, None]),
    "one axis": _with(x_train=lambda x: x[:, 0, 0], x_test=lambda x: x[:, 0, 0]),
    "no axis": _with(x_train=lambda x: x[0, 0, 0]),
    "no axis of labels": _with(y_train=lambda y: y[0]),
    "empty training part": _with(x_train=lambda x: x[:0], y_train=lambda y: y[:0]),
    "empty test part": _with(x_test=lambda x: x[:0], y_test=lambda y: y[:0]),
    "empty images": _with(x_train=lambda x: x[:, :0], x_test=lambda x: x[:, :0]),
    "one sample": _with(x_train=lambda x: x[:1], y_train=lambda y: y[:1]),
    "fewer than are held out": _with(x_train=lambda x: x[:5], y_train=lambda y: y[:5]),
    "one class": _with(y_train=lambda y: y * 0, y_test=lambda y: y * 0),
    "negative labels": _with(y_train=lambda y: y - 1),
    "a huge label": _with(y_train=lambda y: y + 10**12),
    "unsigned labels that wrap": _with(y_train=lambda y: (y - 1).astype(np.uint64)),
    "a label only in the test part": _with(y_test=lambda y: y + 2),
    "fewer labels than samples": _with(y_train=lambda y: y[:-1]),
    "more labels than samples": _with(y_test=lambda y: np.concatenate([y, y])),
    "labels with an axis too many": _with(y_train=lambda y: y[:, None]),
    "images of another size": _with(x_test=lambda x: x[:, :5]),
    "images with another axis": _with(x_test=lambda x: x[..., None]),
    "float and whole pixels": _with(x_test=lambda x: x / 255),
    "NaN pixels": _with(x_train=lambda x: x * np.nan, x_test=lambda x: x * 1.0),
    "infinite pixels": _with(x_train=lambda x: x * 1.0, x_test=lambda x: np.full(x.shape, np.inf)),
    "pixels beyond float32": _with(x_train=lambda x: x * 1e300, x_test=lambda x: x * 1.0),
    "NaN targets": _with(y_train=lambda y: y * np.nan, y_test=lambda y: y * 1.0),
    "targets of two kinds": _with(y_train=lambda y: y * 1.0),
    "targets of another length": _with(y_train=lambda y: np.ones((40, 2)), y_test=lambda y: np.ones((10, 3))),
    "no targets at all": _with(y_train=lambda y: np.ones((40, 0)), y_test=lambda y: np.ones((10, 0))),
    "pickled objects": _with(y_train=lambda y: np.array([{"a": 1}] * 40, dtype=object)),
    "an array missing": lambda arrays: {key: arrays[key] for key in ("x_train", "y_train", "x_test")},
    "no array at all": lambda arrays: {},
    "other names": lambda arrays: {key.upper(): value for key, value in arrays.items()},
}
"""Sets that cannot be learned from."""

_RAW: tuple[Callable[[bytes], bytes], ...] = (
    lambda whole: b"",
    lambda whole: whole[: len(whole) // 2],
    lambda whole: whole[: len(whole) - 3],
    lambda whole: b"\x93NUMPY" + whole,
    lambda whole: pickle.dumps({"x_train": 1}),
    lambda whole: whole.replace(b"descr", b"dexcr"),
    lambda whole: whole.replace(b"NUMPY", b"NAMPY"),
)


def hostile_files(count: int, place: Path, seed: int) -> Count:
    """Sets with wrong shapes, types, labels or sizes, and archives that are cut off or changed."""
    total, draw = Count(), random.Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    names = list(HOSTILE)
    for number in range(count):
        state = np.random.RandomState(draw.randrange(2**31))
        path = place / f"{number}.npz"
        if number < len(names):
            label = names[number]
            np.savez(path, **HOSTILE[label](sound(state)))
        else:
            np.savez(path, **sound(state))
            whole = path.read_bytes()
            change = number - len(names)
            if change < len(_RAW):
                label, content = f"raw change {change}", _RAW[change](whole)
            else:
                where = draw.randrange(60, len(whole))
                label, content = f"{where} of {len(whole)} bytes", whole[:where]
            path.write_bytes(content)
        ended = _train(["data=npz", f"data.path={path}", "data.validation=8", "trainer.batch_size=4"], place)
        named = f"data.path={path}" in ended.err or "data.validation=" in ended.err
        refused = ended.code == 2 and ended.clear and named
        total.add(
            refused and not (place / "outputs").exists(), f"{label}: exit code {ended.code}: {ended.err}"
        )
    return total


OPTIONS = (
    *(
        "trainer.epochs",
        "trainer.batch_size",
        "trainer.max_seconds",
        "trainer.checkpoint_every",
        "seed",
        "name",
    ),
    *(
        "optimizer.period",
        "optimizer.step_size",
        "optimizer.curvature.batch_size",
        "optimizer.averaging.coefficient",
    ),
    *(
        "model.widths",
        "model.activation",
        "data.validation",
        "data.augment.flip",
        "partition",
        "optimizer",
        "model",
    ),
    *("trainer.target.metric", "trainer.dtype", "trainer.device", "optimizer/direction", "resume", "trainer"),
)
NONSENSE = (
    *(
        "-1",
        "nan",
        "inf",
        "-inf",
        "1e999",
        "0x10",
        "[]",
        "[[]]",
        "{}",
        "{a:1}",
        "[1,2",
        "'",
        '"',
        "\\",
        "${",
        "${x}",
    ),
    *(
        "${oc.env:NOTHING_HERE}",
        "???",
        "null,null",
        "a,b,a",
        "[nan]",
        "!!python/object/apply:os.system",
        "*",
        "&a",
    ),
    *(
        "\x00",
        "\n",
        "é\u202e",
        "9" * 400,
        "a" * 3000,
        "../../x",
        "/",
        "=",
        "==",
        "1 2",
        "(1)",
        "-",
        "--",
        "~",
        "+",
    ),
    *(
        "_target_: os.system",
        "{_target_: os.system}",
        "${hydra:runtime.cwd}",
        "glob(*)",
        "range(3)",
        "sort(2,1)",
    ),
)


def hostile_overrides(count: int, place: Path, seed: int) -> Count:
    """Command lines of real and invented options with nonsensical values, in this process."""
    total, draw = Count(), random.Random(seed)
    place.mkdir(parents=True, exist_ok=True)
    while total.injected < count:
        arguments = nonsense(draw)
        ended = check_only(arguments, place)
        if ended is not None:  # else it was sense by chance
            good = ended.code == 2 and ended.clear and ended.err.startswith("gnewton: ")
            total.add(good, f"{arguments}: exit code {ended.code}: {ended.err}")
    return total


def nonsense(draw: random.Random) -> list[str]:
    """One to three overrides, at least one of which is almost surely wrong."""
    overrides = []
    for _ in range(draw.randrange(1, 4)):
        option = draw.choice(OPTIONS)
        if draw.random() < 0.3:
            where = draw.randrange(len(option))
            option = option[:where] + draw.choice("._/@:-+ xé=") + option[where + draw.randrange(2) :]
        overrides.append(
            draw.choice(("", "", "", "+", "++", "~"))
            + option
            + draw.choice(("=", "=", "=", ""))
            + draw.choice(NONSENSE)
        )
    return overrides


def check_only(arguments: list[str], place: Path) -> Ended | None:
    """``gnewton train ARGUMENTS`` up to the first work; None if the work would start."""
    import gnewton.experiment.run as module
    from gnewton.cli.main import main

    class Reached(Exception):
        """The command line was accepted."""

    def reached(*_: object) -> None:
        raise Reached

    out, before = io.StringIO(), module.run
    put(module, run=reached)
    try:
        with within(place), contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            code = main(["train", *arguments])
    except Reached:
        return None
    except BaseException as error:
        return Ended(70, f"{type(error).__name__}: {error}", 0.0)
    finally:
        put(module, run=before)
    return Ended(code, out.getvalue(), 0.0)


def _train(arguments: list[str], place: Path) -> Ended:
    return fork(
        ["optimizer=sgd", "model.widths=[4]", "trainer.epochs=1", "trainer.device=cpu", *arguments], place
    )
