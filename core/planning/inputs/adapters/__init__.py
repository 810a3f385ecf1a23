"""Adapters as inputs: what a folder of factors means for the weights of a base."""
