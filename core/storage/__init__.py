"""Objects by name below one root."""
