"""What each model gives."""
