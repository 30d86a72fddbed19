"""Where groups run."""
