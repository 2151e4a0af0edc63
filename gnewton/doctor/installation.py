"""Python, the package, and whether what it depends on is there in the versions it was tested with."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement

import gnewton
from gnewton.doctor.finding import Finding, Level

PACKAGE = "gnewton"

HYDRA, OMEGACONF = "hydra-core", "omegaconf"


def installation() -> Iterator[Finding]:
    """Versions of Python, the package and everything it requires."""
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
    """Whether one package is there, and in a version that was asked for."""
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
    """Which packages of an extra are there: none of them is needed."""
    there = {r.name: version_of(r.name) for r in requirements}
    missing = [name for name, version in there.items() if version is None]
    if missing:
        return Finding(Level.GOOD, f"[{extra}]", f"not installed (optional: pip install 'gnewton[{extra}]')")
    return Finding(
        Level.GOOD, f"[{extra}]", ", ".join(f"{name} {version}" for name, version in there.items())
    )


def version_of(name: str) -> str | None:
    """The installed version of a package; None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirement_text(requirement: Requirement) -> str:
    """Name and versions, as pip takes them."""
    return f"{requirement.name}{requirement.specifier}"


def _extras() -> list[str]:
    return metadata.metadata(PACKAGE).get_all("Provides-Extra") or []


def _why(name: str) -> str:
    if name in (HYDRA, OMEGACONF):
        return " (with omegaconf 2.4, pip falls back to hydra-core 1.3.0 in silence: keep both pins together)"
    return ""
