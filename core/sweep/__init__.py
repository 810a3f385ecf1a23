"""Decompose once, filter many times: search the parameters of a merge method."""
