"""What else is done to a model before or after unlearning: one intervention, one file."""
