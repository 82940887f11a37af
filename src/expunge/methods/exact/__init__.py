"""Retraining, whole or by shards, and certified removal."""
