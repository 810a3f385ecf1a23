"""Verify what was written: checkpoints, a store, recomputed tensors."""
