"""Services that a run can report to beside its CSV files, by name; all optional.

A new one is a :class:`LoggerRecipe` and its :class:`Logger` in a module here, and a YAML in configs/logger.
"""

from gnewton.loggers.base import LOGGERS, Logger, LoggerRecipe, RunCard
from gnewton.loggers.guard import GuardedLoggers

__all__ = ["LOGGERS", "GuardedLoggers", "Logger", "LoggerRecipe", "RunCard"]
