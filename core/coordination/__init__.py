"""Claims, devices, stopping."""
