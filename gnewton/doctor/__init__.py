"""Checks of the installation, each of which yields findings."""
