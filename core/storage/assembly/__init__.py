"""One output file out of parts."""
