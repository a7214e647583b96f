"""Training: one plain loop for every defense."""
