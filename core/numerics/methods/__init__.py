"""The built-in merge methods: one file per published method or close family."""
