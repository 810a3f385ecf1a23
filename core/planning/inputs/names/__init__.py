"""Names of tensors in different checkpoints: wrappers, tied weights, heads."""
