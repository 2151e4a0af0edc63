"""What times depend on beside the method: the machine and the number format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gnewton.errors import InputError
from gnewton.report.runs import Run

UNKNOWN = "unknown"


def conditions(run: Run) -> dict[str, str]:
    """The conditions under which the times of a run may be compared with those of another.

    On the CPU the cores and threads count, on a GPU its model does; so does the number of processes that
    share the batches. TF32 rounds what is called float32, so it counts as a format of its own. A run that
    was resumed elsewhere has the conditions of both places.
    """
    resumed = run.environment.get("resumed", [])
    parts = [_conditions(environment, run.config) for environment in (run.environment, *resumed)]
    return {
        key: ", then ".join(dict.fromkeys(part[key] for part in parts if key in part))
        for key in dict.fromkeys(key for part in parts for key in part)
    }


def _conditions(environment: dict[str, Any], config: dict[str, Any]) -> dict[str, str]:
    trainer = config.get("trainer", {})
    device = str(environment.get("device", UNKNOWN)).partition(":")[0]
    found = {"device": f"{device} {environment.get('device_name') or UNKNOWN}".strip()}
    if device != "cuda":
        found["cores"] = str(environment.get("cores", UNKNOWN))
        found["threads"] = str(environment.get("threads", UNKNOWN))
    if environment.get("processes", 1) != 1:
        found["processes"] = str(environment["processes"])
    rounding = {
        "TF32": trainer.get("tf32") and device == "cuda",
        f"{trainer.get('precision')} autocast": trainer.get("precision", "full") != "full",
        "compiled": trainer.get("compile"),
    }
    notes = [note for note, holds in rounding.items() if holds]
    found["dtype"] = str(trainer.get("dtype", UNKNOWN)) + (f" ({', '.join(notes)})" if notes else "")
    return found


def differences(runs: Iterable[Run]) -> dict[str, dict[str, int]]:
    """The conditions in which the runs differ: for each, its values and how many runs have them."""
    counts: dict[str, dict[str, int]] = {}
    found = [conditions(run) for run in runs]
    for key in dict.fromkeys(key for entry in found for key in entry):
        values: dict[str, int] = {}
        for entry in found:
            if key in entry or key == "processes":
                value = entry.get(key, "1")
                values[value] = values.get(value, 0) + 1
        if len(values) > 1:
            counts[key] = values
    return counts


def require_same(runs: Iterable[Run]) -> None:
    """Refuse to compare times that were measured under different conditions.

    Raises:
        InputError: naming what differs.
    """
    found = differences(runs)
    if found:
        lines = [
            f"  {key}: " + ", ".join(f"{value} ({_counted(count, 'run')})" for value, count in values.items())
            for key, values in found.items()
        ]
        raise InputError(
            "\n".join(
                [
                    "compare: the times cannot be compared, the runs differ in hardware or number format:",
                    *lines,
                    "compare fewer folders, or give --mixed-hardware to compare them all the same",
                ]
            )
        )


def describe(runs: Iterable[Run]) -> str:
    """The hardware in a line, or in one for each kind of it."""
    lines: dict[str, None] = {}
    for run in runs:
        found = conditions(run)
        threads = ""
        if "threads" in found:
            threads = f", {_counted(found['threads'], 'thread')} on {_counted(found['cores'], 'core')}"
        torch = run.environment.get("packages", {}).get("torch")
        version = f", torch {torch}" if torch else ""
        processes = f", {found['processes']} processes" if "processes" in found else ""
        lines[f"{found['device']}{threads}{processes}, {found['dtype']}{version}"] = None
    return "; ".join(lines)


def _counted(count: int | str, noun: str) -> str:
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"
