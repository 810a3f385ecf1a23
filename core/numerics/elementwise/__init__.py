"""Methods that treat each entry by itself."""
