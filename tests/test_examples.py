"""The programs and the notebook in examples/ run as they are, and train."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"


def loaded(name: str) -> ModuleType:
    """An example as a module: in this process, which has torch already."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_all_are_tested_and_short() -> None:
    programs = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")}
    assert set(programs) == {"own_loop", "lightning_module", "huggingface_style", "data_parallel"}
    for name, text in programs.items():
        assert 40 <= len(text.splitlines()) <= 115, name
        assert f"examples/{name}.py" in text


def test_own_loop(capsys) -> None:
    assert loaded("own_loop").main() > 0.95
    losses = [float(loss) for loss in re.findall(r"training loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 10
    assert losses[-1] < 0.1 < losses[0]


def test_lightning() -> None:
    pytest.importorskip("lightning")
    assert loaded("lightning_module").main(epochs=6) > 0.9


def test_without_lightning_one_line_says_what_is_missing(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning", None)
    with pytest.raises(SystemExit, match="pip install lightning"):
        loaded("lightning_module")


def test_hugging_face_style() -> None:
    assert loaded("huggingface_style").main(steps=150) > 0.85


def test_data_parallel() -> None:
    """The two processes that the program starts itself; those of torchrun are alike."""
    done = run([sys.executable, "examples/data_parallel.py"])
    losses = [float(loss) for loss in re.findall(r"training loss ([\d.]+)", done)]
    assert len(losses) == 5
    assert losses[-1] < 0.2 < losses[0]
    assert "2 processes ended with equal parameters" in done


def test_notebook() -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(EXAMPLES / "rates_and_inspection.ipynb", 4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)  # committed without outputs
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    drawn = [output for cell in cells for output in cell.outputs if "data" in output]
    images = [
        output for output in drawn if "image/png" in output.data or "<img" in output.data.get("text/html", "")
    ]
    assert len(images) == 4
    (losses,) = (output.text for output in cells[2].outputs)
    usual, suggested = (float(line.split()[-1]) for line in losses.splitlines())
    assert suggested < usual


def run(command: list[str]) -> str:
    """What a command prints, run in the root of the checkout."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout
