"""Run folders: one for each run however many start at once, and a hash of every option."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from gnewton.errors import InputError
from gnewton.experiment import folder as module
from gnewton.experiment.folder import config_hash, create_run_folder, write_json


def test_name_of_the_folder(tmp_path):
    folder = create_run_folder(tmp_path / "a" / "b", "0123abcd")
    assert folder.parent == tmp_path / "a" / "b"
    stamp, _, digest = folder.name.rpartition("_")
    assert digest == "0123abcd"
    date, clock, microseconds = stamp.split("-")
    assert (len(date), len(clock), len(microseconds)) == (8, 6, 6)


def test_two_runs_in_one_microsecond_do_not_share(tmp_path, monkeypatch):
    stamps = iter(["1", "1", "2"])

    class FrozenTime:
        @staticmethod
        def now():
            return FrozenTime()

        def __format__(self, spec):
            return next(stamps)

    monkeypatch.setattr(module, "datetime", FrozenTime)
    assert create_run_folder(tmp_path, "x").name == "1_x"
    assert create_run_folder(tmp_path, "x").name == "2_x"


def test_many_processes_at_once(tmp_path):
    program = """
import sys
from pathlib import Path
from gnewton.experiment.folder import create_run_folder
for _ in range(200):
    print(create_run_folder(Path(sys.argv[1]), "same"))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "new")], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    folders = [line for process in processes for line in process.communicate(timeout=120)[0].splitlines()]
    assert len(folders) == len(set(folders)) == 800
    assert all(Path(folder).is_dir() for folder in folders)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output_root: .*file/x cannot be written"):
        create_run_folder(tmp_path / "file" / "x", "0")


def _leaves(node, path=()):
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, (*path, key))
    else:
        yield path, node


def test_the_hash_changes_with_every_option(compose):
    config = compose([])
    whole = OmegaConf.to_container(config, resolve=True)
    seen = {config_hash(config)}
    count = 0
    for path, value in _leaves(whole):
        changed = json.loads(json.dumps(whole))
        node = changed
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = f"{value}!"
        digest = config_hash(OmegaConf.create(changed))
        if path in (("output_root",), ("resume",)):
            assert digest == config_hash(config)
        else:
            assert digest not in seen, path
            seen.add(digest)
        count += 1
    assert count > 40


def test_the_hash_is_that_of_the_values(compose):
    assert config_hash(compose([])) == config_hash(compose(["seed=0", "output_root=elsewhere"]))
    assert len(config_hash(compose([]))) == 8


def test_json_is_whole(tmp_path):
    write_json(tmp_path / "a.json", {"λ": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"λ": [1, None]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
