"""Checks of the installation, each of which yields findings.

They cover Python, the package and what it requires; the processor and the accelerators; the output folder and
the data sets on this machine; and a self-test of two seconds. Each check imports what it needs when it runs,
so that a missing package breaks no other check.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import gnewton
from gnewton.errors import first_line

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement
    from torch import nn


class Level(Enum):
    """Severity of a finding."""

    GOOD = "ok"
    WARNING = "warning"
    BROKEN = "BROKEN"


@dataclass(frozen=True)
class Finding:
    """One line of output.

    Attributes:
        level: its severity.
        subject: what was checked.
        message: the result; if something is wrong, also how to repair it.
    """

    level: Level
    subject: str
    message: str


Check = Callable[[], Iterator[Finding]]


def examine(title: str, check: Check) -> list[Finding]:
    """Run one check; an exception it raises becomes a finding."""
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:  # any error is a finding, and the other checks still run
        findings.append(
            Finding(Level.BROKEN, title, f"the check ended in {type(error).__name__}: {first_line(error)}")
        )
    return findings


# --- packages -----------------------------------------------------------------------------------------------

PACKAGE = "gnewton"

HYDRA, OMEGACONF = "hydra-core", "omegaconf"


def installation() -> Iterator[Finding]:
    """Versions of Python, the package and its requirements."""
    from packaging.requirements import Requirement

    yield Finding(Level.GOOD, "python", f"{platform.python_version()} ({sys.executable})")
    yield Finding(Level.GOOD, PACKAGE, gnewton.__version__)
    try:
        required = metadata.requires(PACKAGE) or []
    except metadata.PackageNotFoundError:
        yield Finding(
            Level.WARNING, PACKAGE, "not installed, it runs from its source: what it requires is not known"
        )
        return
    extras: dict[str, list[Requirement]] = {}
    for text in required:
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield dependency(requirement)
        else:
            for extra in _extras():
                if requirement.marker.evaluate({"extra": extra}):
                    extras.setdefault(extra, []).append(requirement)
    for extra, members in sorted(extras.items()):
        if extra != "dev":
            yield optional(extra, members)


def dependency(requirement: Requirement) -> Finding:
    """Whether a required package is installed in a version that satisfies the requirement."""
    name = requirement.name
    installed = version_of(name)
    if installed is None:
        return Finding(Level.BROKEN, name, f"missing; pip install '{requirement_text(requirement)}'")
    if not requirement.specifier.contains(installed, prereleases=True):
        return Finding(
            Level.WARNING,
            name,
            f"{installed} is outside of {requirement.specifier}{_why(name)}; "
            f"pip install '{requirement_text(requirement)}'",
        )
    wanted = f" ({requirement.specifier})" if requirement.specifier else ""
    return Finding(Level.GOOD, name, f"{installed}{wanted}")


def optional(extra: str, requirements: list[Requirement]) -> Finding:
    """Which packages of an extra are installed; none of them is required."""
    installed = {r.name: version_of(r.name) for r in requirements}
    missing = [name for name, version in installed.items() if version is None]
    if missing:
        return Finding(Level.GOOD, f"[{extra}]", f"not installed (optional: pip install 'gnewton[{extra}]')")
    return Finding(
        Level.GOOD, f"[{extra}]", ", ".join(f"{name} {version}" for name, version in installed.items())
    )


def version_of(name: str) -> str | None:
    """The installed version of a package; None if it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirement_text(requirement: Requirement) -> str:
    """Name and version specifier in the syntax of pip."""
    return f"{requirement.name}{requirement.specifier}"


def _extras() -> list[str]:
    return metadata.metadata(PACKAGE).get_all("Provides-Extra") or []


def _why(name: str) -> str:
    if name in (HYDRA, OMEGACONF):
        return " (with omegaconf 2.4, pip falls back to hydra-core 1.3.0 in silence: keep both pins together)"
    return ""


# --- the machine --------------------------------------------------------------------------------------------

MINIMUM_FREE = 2**30
"""Bytes of free disk space below which a run may fail to write its files."""


def devices() -> Iterator[Finding]:
    """The processor and the accelerators that torch can use."""
    import torch

    from gnewton.backend import compiler_failure, processor

    threads = f"{torch.get_num_threads()} torch threads"
    yield Finding(Level.GOOD, "cpu", f"{processor()}, {os.cpu_count()} cores, {threads}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _cuda(index)
    else:
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without it"
        yield Finding(Level.GOOD, "cuda", f"no device (torch is built {built})")
    if torch.backends.mps.is_available():
        yield Finding(Level.GOOD, "mps", f"{platform.machine()} (float32 only)")
    lacks = compiler_failure(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    message = f"only needed if asked for, and not here: {lacks}" if lacks else "works"
    yield Finding(Level.GOOD, "torch.compile", message)


def _cuda(index: int) -> Finding:
    """Whether a device computes a matrix product correctly; a driver that is too old fails here."""
    import torch

    subject, device = f"cuda:{index}", torch.device("cuda", index)
    try:
        free, total = torch.cuda.mem_get_info(device)
        ones = torch.ones(64, 64, device=device)
        correct = bool(((ones @ ones) == 64).all())
    except RuntimeError as error:
        return Finding(Level.BROKEN, subject, first_line(error))
    name = f"{torch.cuda.get_device_name(device)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
    if not correct:
        return Finding(Level.BROKEN, subject, f"{name}: a matrix product came out wrong")
    return Finding(Level.GOOD, subject, name)


def output_folder(root: Path) -> Iterator[Finding]:
    """Whether run folders can be created below ``root``, and the free disk space."""
    subject = f"output_root={root}"
    place = root
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.NamedTemporaryFile(dir=place, prefix=".gnewton-") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Finding(Level.BROKEN, subject, f"{place} cannot be written ({error.strerror})")
        return
    free = shutil.disk_usage(place).free
    room = f"{free / 2**30:.1f} GiB free"
    if free < MINIMUM_FREE:
        yield Finding(Level.WARNING, subject, f"writable, but only {room}")
    else:
        yield Finding(Level.GOOD, subject, f"writable, {room}")


def datasets(root: Path) -> Iterator[Finding]:
    """Every data set that can be fetched: verified, damaged, or not downloaded yet."""
    from gnewton.data.fetch import available
    from gnewton.data.public_sets import CATALOGUE, Unavailable, cached_file, read_cached

    missing = []
    for name in available():
        path = cached_file(name, root)
        if not path.exists():
            missing.append(name)
            continue
        try:
            read_cached(CATALOGUE[name], root)
        except Unavailable as error:
            yield Finding(
                Level.WARNING, f"data={name}", f"{error}; gnewton data fetch {name} obtains it anew"
            )
        else:
            source = "against published digests" if CATALOGUE[name].digests else "against its own digests"
            yield Finding(Level.GOOD, f"data={name}", f"{path}, verified {source}")
    if missing:
        advice = "not there yet; the first run that needs one fetches it, or gnewton data fetch NAME"
        yield Finding(Level.GOOD, f"data in {root}", f"{', '.join(missing)}: {advice}")


# --- self-test: engines, solver and optimizer on this machine -----------------------------------------------

AGREEMENT = 1e-9
"""Largest relative difference allowed between two exact summaries in float64."""

STEPS = 120


def selftest() -> Iterator[Finding]:
    """The engines agree, the solver certifies its solution, and training lowers the loss."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield engines()
        yield solver()
        yield training()


def engines() -> Finding:
    """The tangent engine agrees with the reference engine on a small network in float64."""
    import torch
    from torch.nn.functional import cross_entropy

    from gnewton.partition import Partition
    from gnewton.summary import Summarizer

    model, inputs, targets = _problem(torch.float64)
    partition = Partition.per_tensor(model)
    direction = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    fast, slow = (
        Summarizer(model, cross_entropy, partition, engine=engine).summarize(inputs, targets, direction)  # type: ignore[arg-type]
        for engine in ("tangent", "reference")
    )
    gap = max(
        float((a - b).norm() / b.norm())
        for a, b in (
            (fast.gradient, slow.gradient),
            (fast.hessian, slow.hessian),
            (fast.third, slow.third),
        )
        if a is not None and b is not None
    )
    return _finding("summary", f"engines agree to {gap:.0e}", passed=gap < AGREEMENT)


def solver() -> Finding:
    """The cubic solver certifies the global minimiser of an indefinite model."""
    import numpy as np

    from gnewton.cubic import solve_cubic

    random = np.random.default_rng(0)
    root = random.standard_normal((12, 12))
    hessian, gradient, third = root + root.T, random.standard_normal(12), random.standard_normal(12)
    solution = solve_cubic(hessian, gradient, third, 1.0)
    message = f"{solution.status}, residual {solution.residual:.0e}, margin {solution.curvature_margin:.2g}"
    return _finding("cubic solver", message, passed=solution.certified)


def training() -> Finding:
    """GroupedNewton lowers the loss in float32."""
    import torch
    from torch.nn.functional import cross_entropy

    from gnewton.optim.grouped_newton import GroupedNewton

    model, inputs, targets = _problem(torch.float32)
    optimizer = GroupedNewton(model, cross_entropy, period=5)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step(batch=(inputs, targets))
        losses.append(float(loss.detach()))
    message = f"GroupedNewton: loss {losses[0]:.3f} to {losses[-1]:.3f} in {STEPS} steps"
    return _finding("training", message, passed=losses[-1] < 0.8 * losses[0])


def _problem(dtype: torch.dtype) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network, and three classes separated by thresholds on the first two features."""
    import torch
    from torch import nn

    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 3))
    inputs = torch.randn(64, 6, dtype=dtype)
    targets = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
    return model.to(dtype), inputs, targets


def _finding(subject: str, message: str, *, passed: bool) -> Finding:
    if passed:
        return Finding(Level.GOOD, subject, message)
    advice = "the results of this installation cannot be trusted; run the test suite"
    return Finding(Level.BROKEN, subject, f"{message}: {advice}")
