"""Checks that an expert fits its base: its config.json, and how much of it arrives."""
