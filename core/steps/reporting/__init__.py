"""Report on a finished merge: data, warnings, and one HTML page."""
