"""Torch only: spectrum, filters, rank rules, methods."""
