"""Launchers by name. A new one is a :class:`Launcher` in a module here and a YAML under configs/launcher."""

from gnewton.sweep.launchers.launcher import LAUNCHERS, Launcher

__all__ = ["LAUNCHERS", "Launcher"]
