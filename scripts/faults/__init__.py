"""Faults injected into runs of gnewton, and what became of them."""
