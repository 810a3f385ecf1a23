"""One tensor: read, merge, cast."""
