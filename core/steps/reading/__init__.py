"""Read what a finished merge recorded about itself."""
