"""The merged checkpoint."""
