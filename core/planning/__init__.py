"""From headers to a plan: pure functions, no torch."""
