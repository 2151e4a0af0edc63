"""Optimizers. GroupedNewton itself is in :mod:`gnewton.optim.grouped_newton`; :mod:`gnewton.optim.recipes`
holds the options under which each optimizer can be chosen by name.
"""
