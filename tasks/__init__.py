"""Thin Prefect tasks: retries, names; pass keys and URIs, never tensors."""
