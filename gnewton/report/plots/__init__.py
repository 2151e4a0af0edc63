"""Plots as matplotlib figures, built without pyplot so that nothing global changes."""
