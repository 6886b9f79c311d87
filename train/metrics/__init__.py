"""Metrics as the official scripts define them."""
