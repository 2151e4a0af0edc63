"""CSV logs whose rows reach the disk whole."""

from __future__ import annotations

import csv
import errno
import io
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType


class CsvLog:
    """A CSV file to which whole rows are appended.

    Every call of :meth:`write` is one ``os.write`` of complete lines to a file opened for appending. A kill
    can cut it only in the microseconds between two of its memory pages. A last line that was cut in this way
    is removed when the file is opened again. An empty cell means that there is no value.

    Args:
        path: the file; its header is written if it does not exist yet.
        columns: the names of the columns, in order.
    """

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        _cut_unfinished_line(path, self._descriptor)
        if os.fstat(self._descriptor).st_size == 0:
            self._append([columns])

    def write(self, rows: Iterable[Mapping[str, object]]) -> None:
        """Append rows; a column that a row lacks stays empty.

        Raises:
            KeyError: if a row names a column that the file does not have.
        """
        lines = []
        for row in rows:
            unknown = set(row) - set(self._columns)
            if unknown:
                raise KeyError(f"no such columns: {sorted(unknown)}")
            lines.append([_cell(row.get(column)) for column in self._columns])
        self._append(lines)

    def sync(self) -> int:
        """Force what was written to the disk; returns the length of the file in bytes.

        Raises:
            OSError: also if the file was removed: the system would go on writing to it without a word.
        """
        os.fsync(self._descriptor)
        status = os.fstat(self._descriptor)
        if status.st_nlink == 0:
            raise FileNotFoundError(errno.ENOENT, f"{self._path.name} has been removed", str(self._path))
        return status.st_size

    def cut(self, length: int) -> None:
        """Remove everything after the first ``length`` bytes, a length that :meth:`sync` returned."""
        os.ftruncate(self._descriptor, length)

    def clear(self) -> None:
        """Remove everything but the header."""
        os.ftruncate(self._descriptor, 0)
        self._append([self._columns])

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def __enter__(self) -> CsvLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _append(self, lines: Iterable[Iterable[str]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(lines)
        data = text.getvalue().encode()
        start = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:
            os.ftruncate(self._descriptor, start)  # a full disk must not leave half a row
            raise


def check_log(path: Path, columns: tuple[str, ...], length: int) -> str | None:
    """Why the first ``length`` bytes of a file are not whole rows of ``columns``; None if they are."""
    if not path.is_file():
        return f"{path.name} is gone"
    with path.open("rb") as file:
        header = file.readline().decode(errors="replace").rstrip("\n")
        if header != ",".join(columns):
            return f"{path.name} has other columns"
        size = file.seek(0, os.SEEK_END)
        if size < length:
            return f"{path.name} has lost rows: {size} bytes of {length}"
        file.seek(max(length - 1, 0))
        return None if file.read(1) == b"\n" else f"{path.name} was changed: no row ends at byte {length}"


def _cut_unfinished_line(path: Path, descriptor: int) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.ftruncate(descriptor, whole)


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    return str(value)
