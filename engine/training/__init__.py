"""Training: samples, losses, metrics and one procedure a file."""
