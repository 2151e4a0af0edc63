"""CSV logs hold whole rows, whatever happens."""

from __future__ import annotations

import csv
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from gnewton.training.csvlog import CsvLog

COLUMNS = ("step", "name", "value")


def _rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def test_cells(tmp_path):
    with CsvLog(tmp_path / "a.csv", COLUMNS) as log:
        log.write([{"step": 1, "name": 'a,"b"\nc', "value": 0.1}, {"value": 1e-300, "step": None}])
        log.write([{"name": True, "value": False}])
    assert _rows(tmp_path / "a.csv") == [
        list(COLUMNS),
        ["1", 'a,"b"\nc', "0.1"],
        ["", "", "1e-300"],
        ["", "true", "false"],
    ]


def test_floats_survive_exactly(tmp_path):
    values = [0.1 + 0.2, 1 / 3, 2.0**-1074, 1.7976931348623157e308]
    with CsvLog(tmp_path / "a.csv", COLUMNS) as log:
        log.write([{"value": value} for value in values])
    assert [float(row[2]) for row in _rows(tmp_path / "a.csv")[1:]] == values


def test_unknown_columns_are_refused_and_write_nothing(tmp_path):
    with (
        CsvLog(tmp_path / "a.csv", COLUMNS) as log,
        pytest.raises(KeyError, match="no such columns: \\['x'\\]"),
    ):
        log.write([{"step": 1}, {"x": 1}])
    assert _rows(tmp_path / "a.csv") == [list(COLUMNS)]


def test_appending_writes_no_second_header(tmp_path):
    for step in (1, 2):
        with CsvLog(tmp_path / "a.csv", COLUMNS) as log:
            log.write([{"step": step}])
    assert [row[0] for row in _rows(tmp_path / "a.csv")] == ["step", "1", "2"]


def test_a_full_disk_leaves_no_part_of_a_row(tmp_path, monkeypatch):
    original = os.write
    calls = []

    def nearly_full(descriptor, data):
        calls.append(len(data))
        if len(calls) == 1:
            return original(descriptor, data[:5])  # some of it still fits
        raise OSError(errno.ENOSPC, "No space left on device")

    with CsvLog(tmp_path / "a.csv", COLUMNS) as log:
        log.write([{"step": 1, "value": 2.5}])
        whole = (tmp_path / "a.csv").read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", nearly_full)
            with pytest.raises(OSError, match="No space left"):
                log.write([{"step": 2, "value": 3.5}, {"step": 3}])
        assert calls[1] == calls[0] - 5
        assert (tmp_path / "a.csv").read_bytes() == whole
        log.write([{"step": 4}])
    assert [row[0] for row in _rows(tmp_path / "a.csv")] == ["step", "1", "4"]


def test_a_killed_writer_leaves_whole_rows(tmp_path):
    program = """
import sys
from pathlib import Path
from gnewton.training.csvlog import CsvLog
log = CsvLog(Path(sys.argv[1]), ("step", "name", "value"))
step = 0
while True:
    log.write([{"step": step, "name": letter * 3000, "value": 1.5} for letter in "xy"])
    step += 1
"""
    for attempt in range(3):
        path = tmp_path / f"{attempt}.csv"
        process = subprocess.Popen([sys.executable, "-c", program, str(path)])
        deadline = time.monotonic() + 60
        while (not path.exists() or path.stat().st_size < 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
        left = path.read_bytes()
        CsvLog(path, ("step", "name", "value")).close()  # takes off a line that was cut between two pages
        assert path.read_bytes() == left[: left.rfind(b"\n") + 1]
        rows = _rows(path)
        assert len(rows) > 10
        assert {len(row) for row in rows} == {3}
        assert [int(row[0]) for row in rows[1:]] == [index // 2 for index in range(len(rows) - 1)]
