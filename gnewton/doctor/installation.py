"""Findings, and the check of Python, the package and the packages it requires."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from typing import TYPE_CHECKING

import gnewton
from gnewton.errors import first_line

if TYPE_CHECKING:
    from packaging.requirements import Requirement


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
