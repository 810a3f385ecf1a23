"""Scheduled merges."""
