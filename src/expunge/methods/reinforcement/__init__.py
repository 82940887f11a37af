"""Rewards for not leaking."""
