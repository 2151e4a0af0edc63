"""The format of a run folder: the statuses of a run, the names of its files and the columns of its CSV logs.

Training writes a run folder; loggers, reports, sweeps, tuning and inspection read it. They agree here. The
meaning of each file and column is documented in docs/csv.md.
"""

from __future__ import annotations

DONE, TARGET, LIMIT, STOPPED = "done", "target", "limit", "stopped"
"""A run that came to its end: after all epochs, at its target, at its limit of steps or seconds, or early,
since its metric got no better."""

DIVERGED, FAILED = "diverged", "failed"
"""A run that ended without a final value: its numbers diverged, or an error ended it."""

INTERRUPTED = "interrupted"
"""A run that a signal stopped, with a checkpoint from which it can be resumed."""

UNFINISHED = "unfinished"
"""Status that readers give a run without result.json: it was killed, or is still under way. Never written."""

PENDING = "pending"
"""Status of a job in a sweep whose run has not ended: not started, or under way. Never in result.json."""

ENDED = (DONE, TARGET, LIMIT, STOPPED)
"""Statuses of runs that came to their end as configured."""

BROKEN = (DIVERGED, FAILED)
"""Statuses of runs that ended without a final value."""

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.csv"
RATES_FILE = "rates.csv"
STEPS_FILE = "steps.csv"
RESULT_FILE = "result.json"
LOG_FILE = "train.log"

CHECKPOINT_FOLDER = "checkpoint"
LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"
"""Checkpoints: the last one, the one before it, and the one with the best validation score."""

DATA_DIGEST = "data_digest"
"""Entry of environment.json: the digest of the data, where they come from a file."""

VALIDATION_SCORES = ("validation_loss", "validation_accuracy")
SCORES = ("train_loss", "train_accuracy", *VALIDATION_SCORES, "test_loss", "test_accuracy")
"""Columns of metrics.csv that an evaluation fills."""

CLOCKS = ("train_seconds", "evaluation_seconds", "logging_seconds", "checkpoint_seconds")
"""Columns of metrics.csv with accumulated wall time."""

METRICS_COLUMNS = (
    "epoch",
    "step",
    "running_loss",
    "running_accuracy",
    *SCORES,
    "lr",
    *CLOCKS,
    "samples_per_second",
    "peak_memory_mib",
)
"""Columns of metrics.csv: a row before the first step, and one per evaluated epoch."""

STEPS_COLUMNS = ("step", "loss", "lr", "train_seconds")
"""Columns of steps.csv, one row every ``trainer.log_every`` training steps."""

RATES_COLUMNS = (
    "update",
    "step",
    "group",
    "rate",
    "step_size",
    "gradient",
    "curvature",
    "third",
    "status",
    "fallback",
    "warmup",
    "capped",
    "silent",
    "rejected",
    "loss",
    "radius",
    "residual",
    "curvature_margin",
    "summary_seconds",
    "solve_seconds",
)
"""Columns of rates.csv, one row per update of the rates and group."""
