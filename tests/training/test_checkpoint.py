"""Checkpoints are whole or missing, and cannot run code."""

from __future__ import annotations

import errno
import io
import os
import pickle

import pytest
import torch

from gnewton.errors import InputError
from gnewton.training import checkpoint
from gnewton.training.checkpoint import load_checkpoint, save_checkpoint


def _state(value):
    return {"model": {"w": torch.full((1000,), value)}, "step": int(value)}


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "a.pt", _state(3.0))
    state = load_checkpoint(tmp_path / "a.pt")
    assert state["step"] == 3
    assert torch.equal(state["model"]["w"], torch.full((1000,), 3.0))
    assert os.listdir(tmp_path) == ["a.pt"]  # noqa: PTH208


def test_a_failing_write_keeps_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    save_checkpoint(path, _state(1.0))

    def half(state, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, _state(2.0))
    monkeypatch.undo()
    assert load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.pt"]


def test_the_file_in_place_is_never_partial(tmp_path, monkeypatch):
    """At the moment of the rename, the old file is whole and so is the new one beside it."""
    path = tmp_path / "a.pt"
    save_checkpoint(path, _state(1.0))
    seen = []
    original = type(path).replace

    def watched(self, target):
        seen.append((load_checkpoint(target)["step"], load_checkpoint(self)["step"]))
        return original(self, target)

    monkeypatch.setattr(type(path), "replace", watched)
    save_checkpoint(path, _state(2.0))
    assert seen == [(1, 2)]
    assert load_checkpoint(path)["step"] == 2


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated(tmp_path, share):
    path = tmp_path / "a.pt"
    save_checkpoint(path, _state(1.0))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="a.pt: cannot be read"):
        load_checkpoint(path)


def test_missing(tmp_path):
    with pytest.raises(InputError, match="none.pt: cannot be read \\(FileNotFoundError"):
        load_checkpoint(tmp_path / "none.pt")


@pytest.mark.parametrize("content", [[1, 2], {"weights": torch.zeros(2)}, torch.zeros(3)])
def test_foreign(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(InputError, match="it holds no model"):
        load_checkpoint(tmp_path / "a.pt")


class _Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))])
def test_code_in_the_file_is_not_run(tmp_path, write):
    write({"model": {}, "attack": _Attack(tmp_path / "owned")}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="cannot be read"):
        load_checkpoint(tmp_path / "a.pt")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("room", [0, 10, 100, 1000, 2000])
def test_a_full_disk_is_named(tmp_path, monkeypatch, room):
    class Disk(io.BytesIO):
        def write(self, data):
            if self.tell() + len(data) > room:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data)

    monkeypatch.setattr(type(tmp_path), "open", lambda self, mode: Disk())
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path / "last.pt", {"model": torch.zeros(1000)})
