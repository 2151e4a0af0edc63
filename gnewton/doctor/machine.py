"""The processor, the accelerators, the output folder and the data sets on this machine."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from gnewton.backend import compiler_failure, processor
from gnewton.data.fetch import available
from gnewton.data.fetch.cache import Unavailable, cached_file, read_cached
from gnewton.data.fetch.catalogue import CATALOGUE
from gnewton.doctor.installation import Finding, Level
from gnewton.errors import first_line

MINIMUM_FREE = 2**30
"""Bytes of free disk space below which a run may fail to write its files."""


def devices() -> Iterator[Finding]:
    """The processor and the accelerators that torch can use."""
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
