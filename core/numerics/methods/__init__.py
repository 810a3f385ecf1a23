"""One file per published method (or close family). See `..method` for what a method is."""
