"""Where in a model records sit: one localizer, one file."""
