"""Scheduled merges of registered experts."""
