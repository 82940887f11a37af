"""What stands between a model and whoever asks it; one wrapper, one file."""
