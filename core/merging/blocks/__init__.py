"""Merge a tensor block by block, from the stored dtypes to the output's bytes, in memory of constant size."""
