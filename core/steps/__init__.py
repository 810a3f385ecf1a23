"""What a command or a flow calls."""
