"""The conditions, besides the method, on which times depend: hardware and number format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gnewton.errors import InputError
from gnewton.report.runs import Run

UNKNOWN = "unknown"


def conditions(run: Run) -> dict[str, str]:
    """The conditions that must agree for the times of two runs to be comparable.

    They are the device, on the CPU its cores and threads, the number of processes that share the batches, and
    the number format. TF32 rounds float32 values, so it is a format of its own. A run that was resumed
    elsewhere has the conditions of both places.
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
    result = {"device": f"{device} {environment.get('device_name') or UNKNOWN}".strip()}
    if device != "cuda":
        result["cores"] = str(environment.get("cores", UNKNOWN))
        result["threads"] = str(environment.get("threads", UNKNOWN))
    if environment.get("processes", 1) != 1:
        result["processes"] = str(environment["processes"])
    rounding = {
        "TF32": trainer.get("tf32") and device == "cuda",
        f"{trainer.get('precision')} autocast": trainer.get("precision", "full") != "full",
        "compiled": trainer.get("compile"),
    }
    notes = [note for note, holds in rounding.items() if holds]
    result["dtype"] = str(trainer.get("dtype", UNKNOWN)) + (f" ({', '.join(notes)})" if notes else "")
    return result


def differences(runs: Iterable[Run]) -> dict[str, dict[str, int]]:
    """The conditions in which the runs differ: the values of each, with the number of runs that have them."""
    counts: dict[str, dict[str, int]] = {}
    entries = [conditions(run) for run in runs]
    for key in dict.fromkeys(key for entry in entries for key in entry):
        values: dict[str, int] = {}
        for entry in entries:
            if key in entry or key == "processes":
                value = entry.get(key, "1")
                values[value] = values.get(value, 0) + 1
        if len(values) > 1:
            counts[key] = values
    return counts


def require_same(runs: Iterable[Run]) -> None:
    """Refuse runs whose times were measured under different conditions.

    Raises:
        InputError: listing the differences.
    """
    different = differences(runs)
    if different:
        lines = [
            f"  {key}: "
            + ", ".join(f"{value} ({_number_of(count, 'run')})" for value, count in values.items())
            for key, values in different.items()
        ]
        raise InputError(
            "\n".join(
                [
                    "compare: the times cannot be compared, the runs differ in hardware or number format:",
                    *lines,
                    "compare fewer folders, or compare them all the same with --mixed-hardware",
                ]
            )
        )


def describe(runs: Iterable[Run]) -> str:
    """The hardware of the runs, each kind once."""
    lines: dict[str, None] = {}
    for run in runs:
        parts = conditions(run)
        threads = ""
        if "threads" in parts:
            threads = f", {_number_of(parts['threads'], 'thread')} on {_number_of(parts['cores'], 'core')}"
        torch = run.environment.get("packages", {}).get("torch")
        version = f", torch {torch}" if torch else ""
        processes = f", {parts['processes']} processes" if "processes" in parts else ""
        lines[f"{parts['device']}{threads}{processes}, {parts['dtype']}{version}"] = None
    return "; ".join(lines)


def _number_of(count: int | str, noun: str) -> str:
    return f"{count} {noun}" if str(count) == "1" else f"{count} {noun}s"
