"""``gnewton doctor``: on a sound installation, and on ones that are broken in a known way."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from importlib import metadata

import numpy as np
import pytest
from packaging.requirements import Requirement

from gnewton import cubic, diagnostics
from gnewton.data import public_sets
from gnewton.diagnostics import Finding, Level, examine, output_folder
from gnewton.summary import Summarizer


@pytest.fixture
def versions(monkeypatch):
    """versions(name=version) makes packages appear in other versions; None: missing."""
    real = diagnostics.version_of

    def change(**changed):
        changed = {name.replace("_", "-"): version for name, version in changed.items()}
        monkeypatch.setattr(
            diagnostics, "version_of", lambda name: changed[name] if name in changed else real(name)
        )

    return change


def by_subject(findings):
    return {finding.subject: finding for finding in findings}


def test_a_sound_installation(cli, tmp_path):
    answer = cli(["doctor"])
    assert (answer.code, answer.err) == (0, "")
    for word in (
        "hydra-core",
        "omegaconf",
        "torch",
        "cpu",
        "writable",
        "cifar10",
        "engines agree",
        "residual",
    ):
        assert word in answer.out
    assert "BROKEN" not in answer.out
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


@pytest.mark.parametrize(("name", "version"), [("omegaconf", "2.4.0"), ("hydra_core", "1.3.0")])
def test_a_version_outside_of_its_pin_is_a_warning(cli, versions, name, version):
    versions(**{name: version})
    answer = cli(["doctor"])
    assert answer.code == 0
    line = next(line for line in answer.out.splitlines() if "warning" in line)
    assert name.replace("_", "-") in line
    assert f"{version} is outside of" in line
    assert f"1 warning: {name.replace('_', '-')}" in answer.out


def test_a_release_candidate_within_the_pin_is_fine():
    finding = diagnostics.dependency(Requirement("numpy>=1"))
    assert (finding.level, finding.message) == (Level.GOOD, f"{np.__version__} (>=1)")


def test_a_missing_package_is_broken(cli, versions):
    versions(scipy=None)
    answer = cli(["doctor"])
    assert answer.code == 1
    assert "BROKEN   scipy" in answer.out
    assert "missing; pip install 'scipy'" in answer.out
    assert answer.out.endswith("broken: scipy\n")
    assert "engines agree" in answer.out  # the examination goes on


def test_without_an_installation_the_pins_are_not_known(monkeypatch):
    def nothing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", nothing)
    findings = by_subject(diagnostics.installation())
    assert findings["gnewton"].level is Level.WARNING


def test_a_folder_that_cannot_be_written(monkeypatch, tmp_path):
    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", refuse)
    (finding,) = output_folder(tmp_path / "not" / "there")
    assert finding.level is Level.BROKEN
    assert finding.message == f"{tmp_path} cannot be written (Permission denied)"


def test_a_full_disk_is_a_warning(monkeypatch, tmp_path):
    usage = dataclasses.make_dataclass("Usage", ["free"])
    monkeypatch.setattr("shutil.disk_usage", lambda place: usage(2**20))
    (finding,) = output_folder(tmp_path)
    assert finding.level is Level.WARNING
    assert not list(tmp_path.iterdir())


def test_data_damaged_and_sound(monkeypatch, tmp_path):
    for name in ("mnist", "cifar10"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.npz").write_bytes(b"not an archive")
    real = public_sets.read_cached
    monkeypatch.setattr(
        public_sets, "read_cached", lambda entry, root: None if entry.name == "cifar10" else real(entry, root)
    )
    findings = by_subject(diagnostics.datasets(tmp_path))
    assert findings["data=cifar10"].level is Level.GOOD
    assert findings["data=mnist"].level is Level.WARNING
    assert "gnewton data fetch mnist obtains it anew" in findings["data=mnist"].message
    assert "cifar100, fashion_mnist" in findings[f"data in {tmp_path}"].message


def test_engines_that_disagree_are_broken(monkeypatch):
    real = Summarizer.summarize

    def wrong(self, *arguments):
        summary = real(self, *arguments)
        factor = 1 + 1e-6 if self.engine == "tangent" else 1.0
        return dataclasses.replace(summary, hessian=summary.hessian * factor)

    monkeypatch.setattr(Summarizer, "summarize", wrong)
    findings = by_subject(diagnostics.selftest())
    assert findings["summary"].level is Level.BROKEN
    assert "cannot be trusted" in findings["summary"].message
    assert findings["cubic solver"].level is findings["training"].level is Level.GOOD


def test_a_solver_that_does_not_certify_is_broken(monkeypatch, cli):
    real = cubic.solve_cubic
    monkeypatch.setattr(
        cubic, "solve_cubic", lambda *arguments: dataclasses.replace(real(*arguments), residual=1e-3)
    )
    answer = cli(["doctor"])
    assert answer.code == 1
    assert "broken: cubic solver" in answer.out


def test_a_check_that_fails_is_a_finding():
    def check():
        yield Finding(Level.GOOD, "a", "b")
        raise ImportError("no module named x\nand more")

    first, second = examine("title", check)
    assert first.subject == "a"
    assert second == Finding(Level.BROKEN, "title", "the check ended in ImportError: no module named x")


def test_a_missing_package_does_not_keep_the_command_from_starting(tmp_path):
    program = """
import sys
import gnewton.cli.doctor
print([name for name in ("torch", "numpy", "scipy", "torchvision", "packaging") if name in sys.modules])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


def test_the_self_test_leaves_the_random_stream_alone():
    import torch

    before = torch.get_rng_state()
    list(diagnostics.selftest())
    assert torch.equal(before, torch.get_rng_state())


def test_bad_arguments_are_refused(cli):
    answer = cli(["doctor", "now"])
    assert (answer.code, answer.err) == (
        2,
        "gnewton: doctor: unrecognized arguments: now; see gnewton doctor --help\n",
    )
