"""Searches whose runs are the stand-ins of the sweeps."""

from tests.sweep.conftest import behave, start, sweeps

__all__ = ["behave", "start", "sweeps"]
