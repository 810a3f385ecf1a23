"""Decompositions in Arrow files."""
