"""Singular value decompositions in the space of the data."""
