"""The map in CONTRIBUTING.md agrees with the tree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_architecture import RANK

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted(set(re.findall(r"`((?:gnewton|configs|docs|scripts|tests)/[\w./]*)`", TEXT)))
MAP = re.findall(r"^\| (\d+) \| `gnewton/([\w./]+)` \|", TEXT, re.M)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_exists(path):
    place = ROOT / path
    assert place.is_dir() if path.endswith("/") else place.is_file()


def test_every_package_and_every_module_at_the_top_is_on_the_map():
    package = ROOT / "gnewton"
    packages = {
        f"{path.parent.relative_to(package).as_posix()}/" for path in package.rglob("__init__.py")
    } - {"./"}
    modules = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert {entry for _, entry in MAP} == packages | modules


def test_the_layers_are_those_of_the_architecture():
    layers = {entry: RANK[entry.partition("/")[0].removesuffix(".py")] + 1 for _, entry in MAP}
    assert {entry: int(layer) for layer, entry in MAP} == layers
    assert [int(layer) for layer, _ in MAP] == sorted(layers.values())
