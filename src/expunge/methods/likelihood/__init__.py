"""Losses on the likelihood of the forget answers."""
