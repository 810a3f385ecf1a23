"""Threads, Dask, Ray."""
