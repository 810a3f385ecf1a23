"""Models as they are stored: references, folders, adapters, float8."""
