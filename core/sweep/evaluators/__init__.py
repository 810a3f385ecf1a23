"""Functions that score a candidate: of the user, and those that are shipped."""
