"""Dtypes, digests, safetensors headers, bounded JSON, names."""
