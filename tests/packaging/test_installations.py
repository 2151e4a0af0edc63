"""The three kinds of installation: a checkout, an editable install, a wheel in a foreign directory."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest

import gnewton

ROOT = Path(gnewton.__file__).resolve().parents[1]

pytestmark = pytest.mark.slow

SHORT = ["trainer.max_steps=2", "trainer.device=cpu", "output_root=runs"]
TWO_STEPS = ["model.widths=[8]", *SHORT]


def _python(arguments: list[str], cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def _where(cwd: Path, path: Path | None) -> tuple[Path, Path]:
    """The package and the configuration that are in use there."""
    program = """
import gnewton
from gnewton.experiment.places import config_folder
print(gnewton.__file__)
print(config_folder())
"""
    ended = _python(["-c", program], cwd, path)
    assert ended.returncode == 0, ended.stderr
    package, configs = ended.stdout.split()
    return Path(package).parent, Path(configs)


def _composes(cwd: Path, path: Path | None = None) -> None:
    shown = _python(["-m", "gnewton", "train", "--cfg", "job"], cwd, path)
    assert shown.returncode == 0, shown.stderr
    assert "name: mlp" in shown.stdout


def _trains(cwd: Path, path: Path, options: list[str] = TWO_STEPS) -> None:
    ended = _python(["-m", "gnewton", "train", *options], cwd, path)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.splitlines()[0].endswith("; loading torch")
    (metrics,) = cwd.glob("runs/*/*/metrics.csv")
    assert list(pd.read_csv(metrics)["step"]) == [0, 2]
    compared = _python(["-m", "gnewton", "compare", "runs", "--html", "--no-plots"], cwd, path)
    assert compared.returncode == 0, compared.stderr
    assert (cwd / "runs" / "comparison" / "report.html").is_file()


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout without anything that building or running has left in it."""
    folder = tmp_path_factory.mktemp("sources") / "checkout"
    folder.mkdir()
    for name in ("gnewton", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    target = tmp_path_factory.mktemp("dist")
    ended = _python(
        ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(sources)], target
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    (path,) = target.glob("*.whl")
    return path


def test_checkout(sources):
    assert _where(sources, None) == (sources / "gnewton", sources / "configs")
    _composes(sources)  # whatever else a checkout does is done by the other tests


def test_editable(tmp_path):
    package, configs = _where(tmp_path, None)
    if (package / "configs").exists():
        pytest.skip("the tests run on an installed wheel")
    assert configs == package.parent / "configs"
    _composes(tmp_path)
    command = Path(sys.executable).parent / "gnewton"
    ended = subprocess.run([command, "--version"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert ended.stdout == f"gnewton {gnewton.__version__}\n"


def _install(wheels: list[Path], site: Path, cwd: Path) -> None:
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    ended = _python([*install, "--target", str(site), *map(str, wheels)], cwd)
    assert ended.returncode == 0, ended.stderr


def test_wheel(wheel, tmp_path):
    site, foreign = tmp_path / "site", tmp_path / "foreign"
    foreign.mkdir()
    _install([wheel], site, foreign)
    assert _where(foreign, site) == (site / "gnewton", site / "gnewton" / "configs")
    _composes(foreign, site)
    _trains(foreign, site)
    assert (site / "bin" / "gnewton").exists()


def test_the_example_of_own_parts_as_a_wheel_of_its_own(wheel, tmp_path):
    """The code and the entry points of docs/plugins.md, installed beside the wheel of gnewton."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    package, site, foreign = tmp_path / "package", tmp_path / "site", tmp_path / "foreign"
    (package / "my_package").mkdir(parents=True)
    foreign.mkdir()
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        '[project]\nname = "my_package"\nversion = "1.0"\n' + re.findall(r"```toml\n(.*?)```", page, re.S)[0]
    )
    (package / "my_package" / "__init__.py").touch()
    (package / "my_package" / "nets.py").write_text(re.findall(r"```python\n(.*?)```", page, re.S)[0])
    for module, part in {"rings": "Rings", "lion": "LionRecipe", "ends": "Ends"}.items():
        (package / "my_package" / f"{module}.py").write_text(f"from my_package.nets import {part}\n")
    ended = _python(
        ["-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(package)], tmp_path
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    _install([wheel, *tmp_path.glob("my_package*.whl")], site, foreign)
    _trains(foreign, site, ["model=gated", "data=rings", "partition=ends", *SHORT])
    shown = _python(["-m", "gnewton", "train", "optimizer=lion", "--help"], foreign, site)
    assert re.search(r"^  optimizer\.momentum=0\.9 +weight of the average in the step", shown.stdout, re.M)


def test_the_wheel_holds_every_configuration_and_nothing_foreign(wheel, sources):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (sources / "configs").rglob("*.yaml"):
        assert f"gnewton/{path.relative_to(sources).as_posix()}" in names
    for path in (sources / "gnewton").rglob("*.py"):
        assert path.relative_to(sources).as_posix() in names
    tops = {name.split("/")[0] for name in names}
    assert tops == {"gnewton", f"gnewton-{gnewton.__version__}.dist-info"}


def test_the_wheel_states_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith("METADATA")]
        metadata = file.read(name).decode()
    assert "Requires-Dist: hydra-core<1.4,>=1.3.8" in metadata
    assert "Requires-Dist: omegaconf<2.4,>=2.3" in metadata
    assert "Requires-Python: <3.14,>=3.10" in metadata
