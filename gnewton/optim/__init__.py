"""Optimizers. GroupedNewton is in :mod:`gnewton.optim.grouped_newton`; :mod:`gnewton.optim.options` holds the
options of every optimizer that can be chosen by name.
"""
