"""Data sets too large for memory: decoded by worker processes, normalised on the device. Imports torch."""
