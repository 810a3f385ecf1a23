"""Bytes, operations, memory, time."""
