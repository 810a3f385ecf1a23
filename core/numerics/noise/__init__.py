"""Noise of known size in task vectors."""
