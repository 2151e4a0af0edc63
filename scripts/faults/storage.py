"""Full disks, folders that cannot be written, files that vanish, processes that start at the same moment."""

from __future__ import annotations

import multiprocessing
import os
import random
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.faults.forks import Count, Ended, fork, put, small
from scripts.faults.logs import broken, contents, run_folder

SHORT = ("trainer.epochs=6", "trainer.log_every=2", "trainer.checkpoint_every=2 steps")
NOBODY = 65534
PROCESSES = 32


def full_disk(count: int, place: Path, seed: int) -> Count:
    """A file system of random size that fills up; once there is room, the run is resumed to its end.

    A tmpfs where one may be mounted, else a limit on the size of every file.
    """
    total, draw = Count(), random.Random(seed)
    whole = _reference(place)
    mounting = can_mount(place)
    for number in range(count):
        root = place / f"{number}"
        kilobytes = draw.randrange(4, 160)
        with tmpfs(root, kilobytes) if mounting else nothing(root):
            limit = (lambda: None) if mounting else (lambda size=kilobytes * 256: _file_limit(size))  # type: ignore[misc]
            ended = fork([*small(), *SHORT, "output_root=out"], root, before=limit)
            folder = run_folder(root / "out")
            wrong = (
                None if ended.code in (0, 1, 2) and ended.clear else f"exit code {ended.code}: {ended.err}"
            )
            named = any(reason in ended.err for reason in ("No space left", "File too large"))
            if wrong is None and ended.code != 0 and not named:
                wrong = f"not named: {ended.err}"
            if wrong is None and folder is not None:
                wrong = broken(folder, resumed=False) or _resumed(folder, root, whole, room=mounting)
            total.add(wrong is None, f"{kilobytes} KiB: {wrong}")
    return total


def _resumed(folder: Path, root: Path, whole: Path, *, room: bool) -> str | None:
    """What is wrong with a run that is resumed once there is room."""
    if room:
        subprocess.run(["mount", "-o", "remount,size=8m", str(root)], check=True)
    ended = fork([f"resume={folder}"], root)
    if ended.code:
        return f"resumed: exit code {ended.code}: {ended.err}"
    return broken(folder, resumed=True) or (
        None if contents(folder) == contents(whole) else "the run differs"
    )


def locked_places(count: int, place: Path, seed: int) -> Count:
    """Places without permission to write or read, before and during a run."""
    cases: list[Callable[[Path], tuple[Ended, bool]]] = [
        _root_read_only,
        _root_is_a_file,
        _root_without_permission,
        _checkpoints_without_permission,
        _logs_without_permission,
        _resume_without_permission,
        _data_without_permission,
    ]
    total = Count()
    for number in range(count):
        case = cases[number % len(cases)]
        root = place / f"{number}"
        root.mkdir(parents=True)
        root.chmod(0o777)
        ended, intact = case(root)
        good = ended.code in (1, 2) and ended.clear and intact
        total.add(good, f"{case.__name__.strip('_')}: exit code {ended.code}, intact {intact}: {ended.err}")
    return total


def _root_read_only(root: Path) -> tuple[Ended, bool]:
    (root / "out").mkdir()
    (root / "out").chmod(0o555)
    return _as_nobody([*small(), *SHORT, "output_root=out"], root), not any((root / "out").iterdir())


def _root_is_a_file(root: Path) -> tuple[Ended, bool]:
    (root / "out").write_text("mine")
    ended = fork([*small(), *SHORT, "output_root=out"], root)
    return ended, (root / "out").read_text() == "mine"


def _root_without_permission(root: Path) -> tuple[Ended, bool]:
    (root / "out").mkdir()
    (root / "out").chmod(0o000)
    return _as_nobody([*small(), *SHORT, "output_root=out"], root), True


def _checkpoints_without_permission(root: Path) -> tuple[Ended, bool]:
    return _locked_in_a_run(root, "checkpoint")


def _logs_without_permission(root: Path) -> tuple[Ended, bool]:
    """Resuming needs to write metrics.csv."""
    folder = _stopped(root)
    kept = (folder / "metrics.csv").read_bytes()
    (folder / "metrics.csv").chmod(0o444)
    return _as_nobody([f"resume={folder}", *_ON], root), (folder / "metrics.csv").read_bytes() == kept


def _resume_without_permission(root: Path) -> tuple[Ended, bool]:
    folder = _stopped(root)
    kept = (folder / "metrics.csv").read_bytes()
    folder.chmod(0o555)
    return _as_nobody([f"resume={folder}", *_ON], root), (folder / "metrics.csv").read_bytes() == kept


def _data_without_permission(root: Path) -> tuple[Ended, bool]:
    (root / "set.npz").write_bytes(b"")
    (root / "set.npz").chmod(0o000)
    ended = _as_nobody(["data=npz", f"data.path={root / 'set.npz'}", "trainer.device=cpu"], root)
    return ended, not (root / "outputs").exists()


_ON = ("trainer.max_steps=null",)


def _stopped(root: Path) -> Path:
    fork([*small(), *SHORT, "output_root=out", "trainer.max_steps=7"], root, before=_drop_privileges)
    folder = run_folder(root / "out")
    assert folder is not None
    return folder


def _locked_in_a_run(root: Path, name: str) -> tuple[Ended, bool]:
    """Remove the permission to write after the first epoch."""

    def lock() -> None:
        from gnewton.training.trainer import Trainer

        finish = Trainer._finish_epoch

        def locking(self: Trainer) -> None:
            assert self.folder is not None
            (self.folder / name).chmod(0o555)
            finish(self)

        put(Trainer, _finish_epoch=locking)
        _drop_privileges()

    ended = fork([*small(), *SHORT, "output_root=out"], root, before=lock)
    folder = run_folder(root / "out")
    return ended, folder is not None and broken(folder, resumed=False) is None


def vanished(count: int, place: Path, seed: int) -> Count:
    """The run folder, a part of it or the data are removed during the run."""
    total = Count()
    parts = (".", "checkpoint", "metrics.csv", "rates.csv", "images")
    for number in range(count):
        part, root = parts[number % len(parts)], place / f"{number}"
        root.mkdir(parents=True)
        data = _images(root) if part == "images" else small()

        def remove(part: str = part, root: Path = root) -> None:
            from gnewton.training.trainer import Trainer

            finish = Trainer._finish_epoch

            def removing(self: Trainer) -> None:
                assert self.folder is not None
                gone = root / "images" if part == "images" else self.folder / part
                shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
                finish(self)

            put(Trainer, _finish_epoch=removing)

        ended = fork([*data, *SHORT, "output_root=out"], root, before=remove)
        folder = run_folder(root / "out")
        wrong = broken(folder, resumed=False) if folder is not None else None
        good = ended.code in (1, 2) and ended.clear and wrong is None
        total.add(good, f"{part}: exit code {ended.code}: {wrong or ended.err}")
    return total


def _images(root: Path) -> list[str]:
    """Overrides of a run on a folder of images, which are read as they are needed."""
    from PIL import Image

    for part, images in (("train", 12), ("val", 2)):
        for name in ("cat", "dog"):
            (root / "images" / part / name).mkdir(parents=True)
            for index in range(images):
                Image.new("RGB", (40, 40), (index, 7 * index, 99)).save(
                    root / "images" / part / name / f"{index}.png"
                )
    return [
        *("model=mlp", "model.widths=[4]", "data=imagenet", f"data.root={root / 'images'}", "data.workers=0"),
        *("data.validation=4", "data.size=32", "data.resize=32", "optimizer=sgd", "trainer.batch_size=5"),
        "trainer.device=cpu",
    ]


def at_once(count: int, place: Path, seed: int) -> Count:
    """32 processes create run folders in one place at the same moment, many times; no two get the same."""
    rounds = -(-count // PROCESSES)
    place.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(PROCESSES), context.SimpleQueue()

    def work() -> None:
        from gnewton.experiment.folder import create_run_folder

        created = []
        for _ in range(rounds):
            barrier.wait()
            created.append(str(create_run_folder(place, "same")))
        queue.put(created)

    processes = [context.Process(target=work) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    folders = [folder for _ in processes for folder in queue.get()]
    for process in processes:
        process.join()
    return Count(
        len(folders), len(set(folders)), [] if len(folders) == len(set(folders)) else ["one is shared"]
    )


def can_mount(place: Path) -> bool:
    """Whether a tmpfs may be mounted here."""
    try:
        with tmpfs(place / "probe", 16):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def tmpfs(folder: Path, kilobytes: int) -> Iterator[None]:
    """Within the block, a separate file system of limited size."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def nothing(folder: Path) -> Iterator[None]:
    """No tmpfs can be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    yield


def _file_limit(size: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def _drop_privileges() -> None:
    if os.geteuid() == 0:  # permissions mean nothing to root
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _as_nobody(arguments: list[str], root: Path) -> Ended:
    return fork(arguments, root, before=_drop_privileges)


def _reference(place: Path) -> Path:
    fork([*small(), *SHORT, f"output_root={place / 'whole'}"], place)
    whole = run_folder(place / "whole")
    assert whole is not None
    return whole
