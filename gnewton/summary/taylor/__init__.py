"""Derivatives of high order along each group, by power series that travel through the traced loss."""
