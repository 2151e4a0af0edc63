"""Experiment trackers that a run can report to besides its CSV files, by name; all optional.

A new one is a :class:`LoggerRecipe` and its :class:`Logger` in a module here, and a YAML in configs/logger.
"""

from gnewton.loggers.logger import LOGGERS, GuardedLoggers, Logger, LoggerRecipe, RunCard

__all__ = ["LOGGERS", "GuardedLoggers", "Logger", "LoggerRecipe", "RunCard"]
